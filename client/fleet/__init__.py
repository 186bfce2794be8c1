"""The pinned, long-lived node: Flower's Fleet protocol, the installed client, nothing else.

Two processes. The parent (:mod:`client.fleet.node`) speaks to the server and watches the device's
conditions; it imports neither Flower nor torch. The child (:mod:`client.fleet.worker`) is started
when there is work, keeps the base model warm, and runs the installed ``client.app`` alone.
"""
