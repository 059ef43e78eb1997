"""What is coupled with what: a model is traced, rules follow its channels, and a channel graph comes out."""
