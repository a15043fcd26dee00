"""FedBABU (Oh, Kim, Yun, ICLR 2022, arXiv 2106.06042) with PyTorch Lightning and Flower."""
