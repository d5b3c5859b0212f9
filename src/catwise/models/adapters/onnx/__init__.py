"""ONNX models: the graph, its input, its head, and the graph as a module."""
