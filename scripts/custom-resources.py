"""Compares custom resources with the schemas in a folder (one a kind, KIND.json), and says which kinds nobody checks.

Usage: custom-resources.py SCHEMAS FILE...
"""

import json
import pathlib
import sys

import jsonschema
import yaml

# What Kubernetes itself defines is checked by kubernetes-validate.
BUILT_IN = {"v1", "apps/v1", "batch/v1", "networking.k8s.io/v1"}


def problems(resource, schemas):
    kind = resource["kind"]
    file = schemas / f"{kind}.json"
    if not file.exists():
        return [f"there is no schema for {kind} in {schemas}"]
    validator = jsonschema.Draft202012Validator(json.loads(file.read_text()))
    return [f"{'/'.join(map(str, error.path))}: {error.message}" for error in validator.iter_errors(resource)]


def main():
    schemas, files = pathlib.Path(sys.argv[1]), sys.argv[2:]
    checked, wrong = 0, 0
    for file in files:
        for resource in yaml.safe_load_all(pathlib.Path(file).read_text()):
            if resource is None or resource["apiVersion"] in BUILT_IN:
                continue
            checked += 1
            for problem in problems(resource, schemas):
                wrong += 1
                print(f"{file}: {resource['kind']} {resource['metadata']['name']}: {problem}", file=sys.stderr)
    print(f"{checked} custom resources")
    sys.exit(1 if wrong or not checked else 0)


main()
