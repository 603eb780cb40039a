"""The dynos of this deployment: how they are got, told apart, ended and paid for."""
