"""Values drawn from the chart's own schema: seeded, so that a set that fails can be drawn again."""

import jsonschema


class Drawer:
    """Draws what a JSON schema allows. A text comes from its `examples`; conditions are kept by drawing again."""

    def __init__(self, schema, random):
        self.schema, self.random = schema, random

    def values(self):
        """A set of values that the schema and the chart's own checks take."""
        checker = jsonschema.Draft7Validator(self.schema)
        while True:
            # Part by part: a condition that fails costs one part and not all of them.
            values = {key: self.part(key) for key in self.schema["properties"] if self.random.random() < 0.7}
            values.pop("global", None)
            for index, pool in enumerate(values.get("workers", [])):
                pool["name"] = f"p{index}"
            if checker.is_valid(values) and fits(values):
                return values

    def part(self, key):
        part = {"definitions": self.schema["definitions"], **self.schema["properties"][key]}
        checker = jsonschema.Draft7Validator(part)
        while True:
            value = self.draw(part)
            if checker.is_valid(value):
                return value

    def draw(self, schema):
        if "$ref" in schema:
            return self.draw(self.schema["definitions"][schema["$ref"].rsplit("/", 1)[1]])
        if "enum" in schema:
            return self.random.choice(schema["enum"])
        if "examples" in schema:
            return self.random.choice(schema["examples"])
        if schema["type"] == "object":
            needed = schema.get("required", [])
            of = schema.get("properties", {})
            return {key: self.draw(of[key]) for key in of if key in needed or self.random.random() < 0.6}
        if schema["type"] == "array":
            count = self.random.randint(schema.get("minItems", 0), min(3, schema.get("maxItems", 3)))
            return list({repr(item): item for item in (self.draw(schema["items"]) for _ in range(count))}.values())
        if schema["type"] == "integer":
            low, high = schema["minimum"], schema["maximum"]
            return self.random.choice([low, high, self.random.randint(low, high), min(high, low + 3)])
        return {"boolean": self.random.choice([True, False]), "string": "routes: []\n"}[schema["type"]]


def fits(values):
    """What templates/_helpers.tpl checks beyond the schema."""

    def grows(scaling):
        full = {"enabled": False, "minReplicas": 1, "maxReplicas": 4} | scaling
        return not full["enabled"] or full["minReplicas"] <= full["maxReplicas"]

    defaults = values.get("workerDefaults", {})
    for given in values.get("workers", []):
        pool = {"runner": "model", "device": "cpu", "gpus": 0, "tensorParallel": 1, "modelClaim": ""} | defaults | given
        scaling = defaults.get("autoscaling", {}) | given.get("autoscaling", {})
        known = pool["runner"] == "scripted" or pool.get("source")
        if not known or pool["tensorParallel"] > max(1, pool["gpus"]) or not grows(scaling):
            return False
        if pool["device"] != "cpu" and pool["gpus"] < 1:
            return False
    router = {"minReplicas": 2, "maxReplicas": 6} | values.get("router", {}).get("autoscaling", {})
    return grows(router)
