// Stands in for the header of the same name: nothing of it is used.
