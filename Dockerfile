FROM python:3.11-slim
WORKDIR /app
COPY . /app
RUN pip install --no-cache-dir --constraint constraints.txt uv \
    && uv pip install --system --no-cache --constraint constraints.txt --editable .
ENV FLWR_DISABLE_UPDATE_CHECK=1
