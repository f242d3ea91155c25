"""The fields of a RayJob, so that a misspelt one is found before anything starts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

from ablate.errors import nearest
from ablate.space.files import Place

Known: TypeAlias = "Mapping[str, Known] | None"
"""The fields of a mapping, or of each mapping in a list; None: anything goes."""


def _fields(names: str, **known: Known) -> dict[str, Known]:
    return {**dict.fromkeys(names.split()), **known}


_METADATA = _fields("annotations finalizers labels name namespace")
_EXEC = _fields("httpGet sleep tcpSocket", exec=_fields("command"))
_CONTAINER = _fields(
    "args command envFrom image imagePullPolicy livenessProbe name ports readinessProbe resizePolicy restartPolicy "
    "restartPolicyRules securityContext startupProbe stdin stdinOnce terminationMessagePath terminationMessagePolicy "
    "tty volumeDevices workingDir",
    env=_fields("name value valueFrom"),
    lifecycle=_fields("stopSignal", postStart=_EXEC, preStop=_EXEC),
    resources=_fields("claims limits requests"),
    volumeMounts=_fields("mountPath mountPropagation name readOnly recursiveReadOnly subPath subPathExpr"),
)
_TEMPLATE: dict[str, Known] = {
    "metadata": _METADATA,
    "spec": _fields(
        "activeDeadlineSeconds affinity automountServiceAccountToken dnsConfig dnsPolicy enableServiceLinks "
        "ephemeralContainers hostAliases hostIPC hostNetwork hostPID hostUsers hostname hostnameOverride "
        "imagePullSecrets nodeName nodeSelector os overhead preemptionPolicy priority priorityClassName "
        "readinessGates resourceClaims resources restartPolicy runtimeClassName schedulerName schedulingGates "
        "schedulingGroup securityContext serviceAccount serviceAccountName setHostnameAsFQDN shareProcessNamespace "
        "subdomain terminationGracePeriodSeconds topologySpreadConstraints",
        containers=_CONTAINER,
        initContainers=_CONTAINER,
        tolerations=_fields("effect key operator tolerationSeconds value"),
        volumes=_fields(
            "awsElasticBlockStore azureDisk azureFile cephfs cinder configMap csi downwardAPI ephemeral fc flexVolume "
            "flocker gcePersistentDisk gitRepo glusterfs hostPath image iscsi name nfs persistentVolumeClaim "
            "photonPersistentDisk portworxVolume projected quobyte rbd scaleIO secret storageos vsphereVolume",
            emptyDir=_fields("medium sizeLimit"),
        ),
    ),
}
FIELDS: dict[str, Known] = {
    "apiVersion": None,
    "kind": None,
    "metadata": _METADATA,
    "spec": _fields(
        "activeDeadlineSeconds backoffLimit clusterSelector deletionStrategy entrypoint entrypointNumCpus "
        "entrypointNumGpus entrypointResources jobId managedBy metadata preRunningDeadlineSeconds runtimeEnvYAML "
        "shutdownAfterJobFinishes submissionMode suspend ttlSecondsAfterFinished",
        submitterConfig=_fields("backoffLimit"),
        submitterPodTemplate=_TEMPLATE,
        rayClusterSpec=_fields(
            "enableInTreeAutoscaling gcsFaultToleranceOptions headServiceAnnotations historyServerOptions managedBy "
            "networkPolicy rayVersion suspend tlsOptions upgradeStrategy",
            authOptions=_fields("enableK8sTokenAuth mode secretName"),
            autoscalerOptions=_fields(
                "args command env envFrom idleTimeoutSeconds image imagePullPolicy resources securityContext "
                "upscalingMode version volumeMounts"
            ),
            headGroupSpec=_fields(
                "enableIngress headService ingressOptions labels rayStartParams resources serviceType",
                template=_TEMPLATE,
            ),
            workerGroupSpecs=_fields(
                "groupName idleTimeoutSeconds labels maxReplicas minReplicas numOfHosts priority rayStartParams "
                "replicas resources scaleStrategy suspend",
                template=_TEMPLATE,
            ),
        ),
    ),
}
"""The fields of a RayJob (ray.io/v1) as far as a launch looks, from KubeRay 1.7.0."""


def unknown_field(value: object, known: Known, place: Place = ()) -> tuple[Place, str] | None:
    """Return the place of the first field that there is not, with a guess what was meant; None if all are known."""
    if known is None:
        return None
    if isinstance(value, list):
        return next((found for n, item in enumerate(value) if (found := unknown_field(item, known, (*place, n)))), None)
    if not isinstance(value, dict):
        return None
    for key, item in value.items():
        if key not in known:
            return (*place, key), nearest(key, known)
        if found := unknown_field(item, known[key], (*place, key)):
            return found
    return None
