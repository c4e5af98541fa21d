"""Readers of single files: tables, pictures, IDX, CIFAR, weights; downloads."""
