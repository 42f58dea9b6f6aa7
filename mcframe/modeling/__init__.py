"""The networks: the base model, the node table, and the one module whose forward is a training step."""
