"""The report's sections: each function compares a bundle with the reference and returns a Section or its measures."""
