"""The model of body and head, and the one Lightning Trainer that trains, evaluates and personalizes it."""
