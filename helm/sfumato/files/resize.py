"""Enlarge the claims of NATS's StatefulSet and delete it without its pods, so that it can be created again with the new size.

`helm upgrade` runs it inside the cluster when `nats.volume.size` grows. It may be run again at any point. Exit status 0: done.
"""

import os
import re
import sys
import time

from lightkube import ApiError, Client
from lightkube.resources.apps_v1 import StatefulSet
from lightkube.resources.core_v1 import PersistentVolumeClaim
from lightkube.types import CascadeType

NAMESPACE, NAME, SIZE = os.environ["NAMESPACE"], os.environ["STATEFULSET"], os.environ["SIZE"]
SERVERS = 5  # at most; those that were scaled away keep their claims, and use them again
SECONDS = 300.0
FACTORS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def size_in_bytes(quantity):
    """The bytes of a quantity such as 20Gi."""
    number, suffix = re.fullmatch("([0-9.]+)([A-Za-z]*)", quantity).groups()
    return float(number) * FACTORS[suffix]


def found(kind, name):
    """The object, or None if there is none."""
    try:
        return client.get(kind, name)
    except ApiError as error:
        if error.status.code != 404:
            raise
        return None


try:
    client = Client(namespace=NAMESPACE)
    claims = [found(PersistentVolumeClaim, f"data-{NAME}-{index}") for index in range(SERVERS)]
    for claim in filter(None, claims):
        name, has = claim.metadata.name, claim.spec.resources.requests["storage"]
        if size_in_bytes(has) < size_in_bytes(SIZE):
            client.patch(PersistentVolumeClaim, name, {"spec": {"resources": {"requests": {"storage": SIZE}}}})
            print(f"{name}: {has} -> {SIZE}", flush=True)
    if found(StatefulSet, NAME):
        client.delete(StatefulSet, NAME, cascade=CascadeType.ORPHAN)
    deadline = time.monotonic() + SECONDS
    while found(StatefulSet, NAME):  # it goes when its pods are no longer its own
        if time.monotonic() > deadline:
            sys.exit(f"The StatefulSet {NAME} is still there after {SECONDS:.0f} seconds: look at its finalizers.")
        time.sleep(0.5)
    print(f"{NAME}: deleted without its pods; the upgrade creates it again", flush=True)
except ApiError as error:
    sys.exit(f"Kubernetes refuses: {error.status.message}. Only a storage class with allowVolumeExpansion can enlarge volumes.")
