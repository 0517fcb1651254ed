"""What changes training beyond which layers train: learning rates, generations, penalties, weights afterwards."""
