"""CLIP vision transformers fine-tuned on image classification ([G] Table 1)."""
