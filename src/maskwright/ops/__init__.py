"""What computes: pure functions on tensors and arrays, without learned state and without imports of ours."""
