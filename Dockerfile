# yuegp in a container. It installs itself by launch.py, as everywhere else.
#
#   docker build -t yuegp .                              for the processor
#   docker build -t yuegp --build-arg STACK=cuda .       for NVIDIA cards (needs NVIDIA's container toolkit to run)
#
#   docker run --rm -p 127.0.0.1:7860:7860 -v yuegp:/data -e YUEGP_PASSWORD=choose-one yuegp
#   docker run --rm --gpus all -p 127.0.0.1:7860:7860 -v yuegp:/data -e YUEGP_PASSWORD=choose-one yuegp
#
# Then open http://127.0.0.1:7860. Another number before the colon works too (-p 127.0.0.1:9000:7860). For a name besides
# localhost and addresses, -e YUEGP_ALLOW_HOST=nas.fritz.box (docs/network.md). Songs and models are kept in the volume.
# CUDA itself comes with torch's packages, so both kinds begin with the same small image.
FROM python:3.12-slim

RUN useradd --create-home --uid 1000 yuegp && mkdir /app /data && chown yuegp:yuegp /app /data
USER yuegp
WORKDIR /app

# What decides about packages comes first, so that a change elsewhere does not install them again.
ARG STACK=cpu
ENV YUEGP_STACK=$STACK
COPY --chown=yuegp:yuegp launch.py requirements.txt ./
COPY --chown=yuegp:yuegp requirements requirements
COPY --chown=yuegp:yuegp installer installer
RUN python launch.py install && rm -rf /home/yuegp/.cache .launch

COPY --chown=yuegp:yuegp . .

ENV YUEGP_HOME=/data NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
VOLUME /data
EXPOSE 7860
HEALTHCHECK --start-period=60s CMD ["python", "-c", "import socket; socket.create_connection(('127.0.0.1', 7860), 3)"]
ENTRYPOINT ["python", "launch.py"]
CMD ["ui", "--listen", "--no-browser"]
