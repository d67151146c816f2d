"""Pages and API of the labelling workbench; what a browser is told never says which checkpoint wrote what."""
