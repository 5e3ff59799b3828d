"""Learning against a discriminator."""
