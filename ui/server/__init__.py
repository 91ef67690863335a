"""What answers on the network, and who may ask."""
