"""Super-nets: one network that holds many narrower ones, trained together, and the search for the best of them."""
