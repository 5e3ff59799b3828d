"""Images: what files hold and what is read of them."""
