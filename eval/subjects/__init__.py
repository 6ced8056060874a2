"""Subject and prompt fidelity of generated pictures: DINO, CLIP-I and CLIP-T."""
