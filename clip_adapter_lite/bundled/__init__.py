"""What ships with the library: feature banks of twelve datasets and an excerpt of Fashion-MNIST's
pictures.
"""
