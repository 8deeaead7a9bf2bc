"""The torch modules: backbones, autoencoders, heads, and the graph that scores."""
