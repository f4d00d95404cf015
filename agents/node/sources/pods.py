"""Which pod has which device, by the kubelet's own word: its pod-resources service on a local socket.

Needs grpcio and protobuf (the extra `pods`), imported when there is a socket to ask. Asked in a thread of its own: a
kubelet that is busy, or gone, keeps no sample waiting, and what it said last stays true until it says something else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

EVERY_S, TIMEOUT_S = 10.0, 2.0
METHOD = "/v1.PodResourcesLister/List"
_FIELDS = {
    "ContainerDevices": (("resource_name", 1, False, ""), ("device_ids", 2, True, "")),
    "ContainerResources": (("name", 1, False, ""), ("devices", 2, True, "ContainerDevices")),
    "PodResources": (
        ("name", 1, False, ""),
        ("namespace", 2, False, ""),
        ("containers", 3, True, "ContainerResources"),
    ),
    "ListPodResourcesResponse": (("pod_resources", 1, True, "PodResources"),),
}
"""The part of the kubelet's v1 messages that is read here: name, number, repeated, of which message."""


@cache
def response_type() -> Any:
    """The class of the service's answer, built from the table above."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="podresources.proto", package="v1", syntax="proto3")
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        for field, number, repeated, of in fields:
            message.field.add(
                name=field,
                number=number,
                label=kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL,
                type=kinds.TYPE_MESSAGE if of else kinds.TYPE_STRING,
                type_name=f".v1.{of}" if of else None,
            )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("v1.ListPodResourcesResponse"))


def ask(socket: Path) -> dict[str, tuple[str, str]]:
    """(namespace/pod, container) by device id, as the kubelet says now; grpc.RpcError if it does not."""
    import grpc

    with grpc.insecure_channel(f"unix://{socket.resolve()}") as channel:
        call = channel.unary_unary(METHOD, request_serializer=bytes, response_deserializer=response_type().FromString)
        answer = call(b"", timeout=TIMEOUT_S)
    return {
        device: (f"{pod.namespace}/{pod.name}", container.name)
        for pod in answer.pod_resources
        for container in pod.containers
        for devices in container.devices
        for device in devices.device_ids
    }


class PodResources:
    """What the kubelet said last, asked each ten seconds while somebody wants to know."""

    def __init__(self, socket: Path, question: Callable[[Path], dict[str, tuple[str, str]]] = ask) -> None:
        self._socket, self._question = socket, question
        self._known: dict[str, tuple[str, str]] = {}
        self._asking: threading.Thread | None = None
        self._due_s = 0.0
        self.blind = "" if socket.exists() else f"no kubelet to ask which pod has a GPU ({socket})"

    def known(self, monotonic_s: float) -> dict[str, tuple[str, str]]:
        """(namespace/pod, container) by PCI address."""
        if monotonic_s >= self._due_s and (self._asking is None or not self._asking.is_alive()):
            self._due_s = monotonic_s + EVERY_S
            if self._socket.exists():
                self._asking = threading.Thread(target=self._ask, name="pods", daemon=True)
                self._asking.start()
        return self._known

    def wait(self, timeout_s: float) -> None:
        """Until the question that is on its way is answered."""
        if self._asking is not None:
            self._asking.join(timeout_s)

    def _ask(self) -> None:
        try:
            self._known, self.blind = self._question(self._socket), ""
        except ImportError:
            cure = "pip install '.[pods]' in a checkout of Trimtab"
            self.blind = f"the kubelet cannot be asked which pod has a GPU: {cure}"
        except Exception as error:  # grpc's errors; whatever it is, the next question comes in ten seconds
            self.blind = f"the kubelet does not say which pod has a GPU: {type(error).__name__}"
