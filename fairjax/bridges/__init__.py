"""Bridges: fairjax's contributions and rewards for other libraries.

`flower.py` judges and pays Flower's remote nodes, `shapiq.py` makes games for shapiq's
methods, `dlpack.py` shares memory with PyTorch. Import each by its name. Each needs its
package, and nothing else in fairjax imports it.
"""
