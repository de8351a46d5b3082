# A vLLM server that prunes:
#
#   docker build -t foveate-vllm .
#   docker run --gpus all -p 8000:8000 foveate-vllm Qwen/Qwen2.5-VL-7B-Instruct \
#       --hf-overrides '{"foveate": {"method": "idpruner", "keep": 0.25}}'
ARG VLLM=v0.32.0
FROM vllm/vllm-openai:${VLLM}

COPY pyproject.toml README.md LICENSE /opt/foveate/
COPY src /opt/foveate/src
# vLLM's own torch and transformers satisfy what foveate asks for; nothing of the image is replaced.
RUN python3 -m pip install --no-cache-dir /opt/foveate && rm -rf /opt/foveate

ENTRYPOINT ["vllm", "serve"]
