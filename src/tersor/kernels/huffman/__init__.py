"""The huffman codec on the GPU."""
