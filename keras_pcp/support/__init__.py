"""What every stage uses: checks of arguments, changes that can be undone, files, data, private Keras access."""
