"""MoCo and the full method on CIFAR-100, each with its best settings of `cifar100_settings.py`, at four times its length."""
