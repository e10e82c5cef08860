"""The manifests: `kubectl kustomize`, Kubernetes' schemas, and that parts which name each other agree."""

import subprocess
from pathlib import Path

import kubernetes_validate
import yaml

from shared import port, size, stop_secs_min

OVERLAY = "infra/kubernetes/overlays/example"
# The oldest version that is still cared for somewhere, and the newest whose schemas are there.
VERSIONS = ("1.31", "1.37")


def check(root: Path) -> list[str]:
    ran = subprocess.run(["kubectl", "kustomize", OVERLAY], cwd=root, capture_output=True, text=True, check=False)
    if ran.returncode or ran.stderr:
        return [f"{OVERLAY}: {ran.stderr.strip()}"]
    objects = list(yaml.safe_load_all(ran.stdout))
    found = []
    for thing in objects:
        for version in VERSIONS:
            try:
                kubernetes_validate.validate(thing, version, strict=True)
            except kubernetes_validate.ValidationError as error:
                found.append(f"{title(thing)} ({version}): {'.'.join(map(str, error.path))}: {error.message[:200]}")
    if found:
        return found
    settings = next(t["data"] for t in objects if named(t, "ConfigMap", "tidegate-settings"))
    for thing in objects:
        pod = pod_of(thing)
        if pod:
            found += [f"{title(thing)}: {problem}" for problem in check_pod(root, thing, pod, objects, settings)]
        if thing["kind"] == "PodDisruptionBudget" and not selected(objects, thing["spec"]["selector"]["matchLabels"]):
            found.append(f"{title(thing)}: it selects no pod")
        if thing["kind"] == "HorizontalPodAutoscaler":
            target = thing["spec"]["scaleTargetRef"]
            scaled = [t for t in objects if t["kind"] == target["kind"] and t["metadata"]["name"] == target["name"]]
            if not scaled or "replicas" in scaled[0]["spec"]:
                found.append(f"{title(thing)}: its target is missing, or has a fixed number of replicas")
        if thing["kind"] != "Namespace" and thing["metadata"].get("namespace") != "tidegate":
            found.append(f"{title(thing)}: it is in no namespace")
    return found


def title(thing: dict) -> str:
    return f"{thing['kind']}/{thing['metadata']['name']}"


def named(thing: dict, kind: str, prefix: str) -> bool:
    """Generated names end with a hash."""
    return thing["kind"] == kind and thing["metadata"]["name"].startswith(prefix)


def template_of(thing: dict) -> dict | None:
    spec = thing.get("spec", {})
    spec = spec.get("jobTemplate", {}).get("spec", spec)
    return spec.get("template")


def pod_of(thing: dict) -> dict | None:
    template = template_of(thing)
    return template["spec"] if template else None


def selected(objects: list[dict], labels: dict) -> list[dict]:
    templates = [template_of(thing) for thing in objects]
    return [t for t in templates if t and labels.items() <= t["metadata"]["labels"].items()]


def check_pod(root: Path, thing: dict, pod: dict, objects: list[dict], settings: dict) -> list[str]:
    found = []
    if thing["kind"] == "Deployment":
        if len(selected(objects, thing["spec"]["selector"]["matchLabels"])) != 1:
            found.append("its selector does not select its pods, and those alone")
        if pod["terminationGracePeriodSeconds"] < stop_secs_min(root):
            found.append("it is killed before a worker has handed back what it holds")
    # What the `restricted` standard asks of a pod.
    context = pod["securityContext"]
    if not context.get("runAsNonRoot") or context.get("seccompProfile") != {"type": "RuntimeDefault"}:
        found.append("its pod is not `restricted`")
    if not any(named(t, "ServiceAccount", pod["serviceAccountName"]) for t in objects):
        found.append("there is no such service account")
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    for volume in volumes.values():
        wanted = volume.get("configMap", {}).get("name")
        if wanted and not any(named(t, "ConfigMap", wanted) for t in objects):
            found.append(f"there is no ConfigMap `{wanted}`")
    for container in pod.get("initContainers", []) + pod["containers"]:
        found += check_container(thing, container, volumes, objects, settings)
    return found


def check_container(thing: dict, container: dict, volumes: dict, objects: list[dict], settings: dict) -> list[str]:
    found = []
    name = container["name"]
    if container["image"].rpartition(":")[2] in ("latest", container["image"]):
        found.append(f"the image of `{name}` has no fixed tag")
    context = container["securityContext"]
    hardened = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
    if context != hardened:
        found.append(f"container `{name}` is not `restricted`")
    for source in container["envFrom"]:
        wanted = source.get("configMapRef", {}).get("name")
        if wanted and not any(named(t, "ConfigMap", wanted) for t in objects):
            found.append(f"there is no ConfigMap `{wanted}`")
        if source.get("secretRef", {}).get("name", "tidegate-secrets") != "tidegate-secrets":
            found.append(f"container `{name}` reads a secret that no document names")
    for mount in container["volumeMounts"]:
        if mount["name"] not in volumes:
            found.append(f"there is no volume `{mount['name']}`")
    environment = settings | {entry["name"]: entry["value"] for entry in container.get("env", [])}
    if thing["kind"] == "Deployment":
        ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
        health = port(environment.get("TIDEGATE_HEALTH", "none:0"))
        for probe, path in (("livenessProbe", "/healthz"), ("readinessProbe", "/readyz"), ("startupProbe", "/healthz")):
            asked = container.get(probe, {}).get("httpGet", {})
            if asked.get("path") != path or ports.get(asked.get("port")) != health:
                found.append(f"the {probe} of `{name}` does not ask {path} on port {health}")
    if container.get("args") == ["worker"]:
        memory, limit = environment.get("TIDEGATE_MEMORY", "2GiB"), container["resources"]["limits"]["memory"]
        if size(limit) < 1.5 * size(memory):
            found.append(f"{limit} of memory is less than 1.5 times TIDEGATE_MEMORY, {memory}")
    return found
