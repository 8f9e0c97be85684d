"""Bridges: fairjax's contributions and rewards for what other libraries hold.

`flower.py` judges and pays Flower's remote nodes, `shapiq.py` makes games that shapiq's
methods take, `dlpack.py` shares memory with PyTorch. Each is imported by name, needs
the package that it is about, and is imported by nothing else in fairjax.
"""
