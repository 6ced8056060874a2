"""Tables, pictures and pages made of measured runs, and the papers' published numbers beside them."""
