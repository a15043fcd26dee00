# For CPUs. For GPUs give --build-arg TORCH_INDEX=URL with the index that PyTorch names for them.
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /app
COPY . /app
RUN pip install --no-cache-dir --constraint constraints.txt uv \
    && uv pip install --system --no-cache --constraint constraints.txt --index-url $TORCH_INDEX torch torchvision \
    && uv pip install --system --no-cache --constraint constraints.txt --editable .
ENV FLWR_DISABLE_UPDATE_CHECK=1
