// Checks objects of kinds that Kubernetes itself does not know, from standard input, against their projects' schemas.
import { readFileSync } from "node:fs";

const PACKAGES = {
  "cert-manager.io": "cert-manager",
  "gateway.networking.k8s.io": "gateway-api",
  "keda.sh": "keda",
  "monitoring.coreos.com": "prometheus-operator",
};

const faults = [];
for (const object of JSON.parse(readFileSync(0))) {
  const { apiVersion, kind, metadata } = object;
  const name = PACKAGES[apiVersion.split("/")[0]];
  if (name === undefined) {
    faults.push(`${kind} of ${apiVersion}: no package here has its schema`);
    continue;
  }
  const model = (await import(`@kubernetes-models/${name}/${apiVersion}/${kind}`))[kind];
  try {
    new model(object).validate();
  } catch (error) {
    faults.push(`${kind} ${metadata.name}: ${error.message}`);
  }
}
console.log(JSON.stringify(faults));
