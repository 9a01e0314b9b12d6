"""Writes schemas.json: 200 schemas in families, each bounded so that a small model comes to an end of it.

    python tests/clients/schemas.py > tests/clients/schemas.json
"""

import json
import random

WORDS = ["name", "city", "größe", "température", "国", "имя", "tag-1", "is_open", "a b", "π", "emoji😀", "quote\"d"]


def obj(properties, required=None, **more):
    required = list(properties) if required is None else required
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False} | more


def string(most=12, least=0):
    return {"type": "string", "maxLength": most} | ({"minLength": least} if least else {})


def integer(least=-100, most=100):
    return {"type": "integer", "minimum": least, "maximum": most}


def number(least=-10, most=10):
    """Decimals have no end of their own; steps give them one."""
    return {"type": "number", "minimum": least, "maximum": most, "multipleOf": 0.25}


def array(items, most=4, least=0):
    return {"type": "array", "items": items, "maxItems": most} | ({"minItems": least} if least else {})


def scalars():
    yield {"type": "null"}
    yield {"type": "boolean"}
    yield {"const": "fixed"}
    yield {"const": 42}
    yield {"const": {"a": [1, True, None]}}
    yield {"enum": ["red", "green", "blue"]}
    yield {"enum": [1, 2, 3]}
    yield {"enum": ["one", 2, None, True, {"three": 3}]}
    yield {"enum": ["日本", "中国", "Österreich", "naïve \"quoted\" \\ back"]}
    yield {"type": ["string", "null"], "maxLength": 10}
    yield {"type": ["integer", "boolean"], "minimum": 0, "maximum": 9}
    for least, most in [(0, 9), (-5, 5), (100, 999), (-1000, -990), (0, 0), (7, 123456)]:
        yield integer(least, most)
    yield {"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 10}
    yield {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 5}
    yield number()
    yield number(0, 1)
    yield {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 2, "multipleOf": 0.5}
    for most in [1, 5, 20]:
        yield string(most)
    yield string(10, 3)
    yield string(6, 6)


def strings():
    for form in ["date", "time", "date-time", "ipv4", "uuid"]:
        yield {"type": "string", "format": form, "maxLength": 40}
    yield {"type": "string", "format": "email", "maxLength": 30}
    yield {"type": "string", "format": "hostname", "maxLength": 30}
    for pattern in [
        "^[a-z]{3,8}$",
        "^[A-Z][a-z]{2,9}$",
        "^\\d{3}-\\d{4}$",
        "^(cat|dog|水)$",
        "^[0-9a-f]{8}$",
        "^#[0-9A-F]{6}$",
        "^\\+?[0-9]{6,12}$",
        "^[a-z]+(-[a-z]+){0,2}$",
        "^v\\d{1,2}\\.\\d{1,2}$",
        "^[一-龥]{1,4}$",
    ]:
        yield {"type": "string", "pattern": pattern, "maxLength": 24}


def arrays():
    for items in [integer(0, 9), string(6), {"type": "boolean"}, {"enum": ["x", "y"]}, {"type": "null"}]:
        yield array(items, 4)
        yield array(items, 3, 2)
    yield array(array(integer(0, 9), 2), 3)
    yield {"type": "array", "prefixItems": [string(5), integer(0, 9)], "items": False, "minItems": 2}
    yield {"type": "array", "prefixItems": [{"const": "head"}], "items": integer(0, 9), "minItems": 1, "maxItems": 3}
    yield array(obj({"id": integer(0, 99)}), 3, 1)
    yield array({"anyOf": [integer(0, 9), string(4)]}, 3)


def objects():
    yield {"type": "object", "properties": {}, "additionalProperties": False}
    yield obj({"name": string(), "age": integer(0, 120)})
    yield obj({"name": string(), "age": integer(0, 120)}, ["name"])
    yield obj({"a": integer(0, 9), "b": integer(0, 9), "c": integer(0, 9)}, [])
    yield {"type": "object", "properties": {"a": integer(0, 9)}, "additionalProperties": integer(0, 9),
           "required": ["a"], "maxProperties": 3}
    yield {"type": "object", "patternProperties": {"^k[0-9]$": integer(0, 9)}, "additionalProperties": False,
           "maxProperties": 3}
    for word in WORDS:
        yield obj({word: string(8), "n": integer(0, 9)})
    yield obj({word: {"type": "boolean"} for word in WORDS})
    yield obj({"person": obj({"name": string(), "address": obj({"city": string(), "zip": integer(1, 99999)})})})
    yield obj({"tags": array(string(6)), "matrix": array(array(integer(0, 9), 2, 2), 2, 2)})
    yield obj({"title": string(20), "done": {"type": "boolean"}, "note": {"type": ["string", "null"], "maxLength": 8}})
    deep = integer(0, 9)
    for level in range(6):
        deep = obj({f"level{level}": deep})
    yield deep


def unions():
    yield {"anyOf": [{"type": "null"}, integer(0, 9)]}
    yield {"anyOf": [string(6), array(integer(0, 9), 2)]}
    yield {"anyOf": [obj({"a": integer(0, 9)}), obj({"b": string(6)})]}
    yield obj({"shape": {"anyOf": [
        obj({"kind": {"const": "circle"}, "r": integer(1, 9)}),
        obj({"kind": {"const": "box"}, "w": integer(1, 9), "h": integer(1, 9)}),
    ]}})
    yield {"oneOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "string", "maxLength": 3}]}
    yield {"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 7}]}
    yield {"allOf": [obj({"a": integer(0, 9)}, additionalProperties=True), {"maxProperties": 2}]}
    yield obj({"value": {"anyOf": [{"type": "boolean"}, {"enum": ["maybe", "unknown"]}, {"type": "null"}]}})


def references():
    yield {"$defs": {"p": obj({"x": integer(0, 9), "y": integer(0, 9)})}, "$ref": "#/$defs/p"}
    yield obj({"from": {"$ref": "#/$defs/p"}, "to": {"$ref": "#/$defs/p"}}) | {
        "$defs": {"p": obj({"x": integer(0, 9), "y": integer(0, 9)})}}
    yield obj({"c": {"$ref": "#/definitions/colour"}}) | {"definitions": {"colour": {"enum": ["red", "blue"]}}}
    yield {"$defs": {"größe": integer(0, 9)}, "type": "array", "items": {"$ref": "#/$defs/größe"}, "maxItems": 3}
    # A list that ends: each node names the next or none.
    yield {"$defs": {"node": obj({"v": integer(0, 9), "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/node"}]}})},
           "$ref": "#/$defs/node"}
    yield {"$defs": {"tree": obj({"v": integer(0, 9), "kids": array({"$ref": "#/$defs/tree"}, 1)})},
           "$ref": "#/$defs/tree"}
    yield {"$defs": {"e": {"anyOf": [integer(0, 9), obj({"neg": {"$ref": "#/$defs/e"}})]}}, "$ref": "#/$defs/e"}
    yield obj({"v": integer(0, 9), "next": {"anyOf": [{"type": "null"}, {"$ref": "#"}]}})


def mixed(rng, depth):
    """A schema at random, of what the families have."""
    leaves = [lambda: integer(rng.randint(-99, 0), rng.randint(1, 99)), lambda: string(rng.randint(1, 10)), number,
              lambda: {"type": "boolean"}, lambda: {"enum": rng.sample(WORDS, 3)}, lambda: {"const": rng.choice(WORDS)},
              lambda: {"type": "string", "pattern": "^[a-z]{2,6}$"}, lambda: {"type": "null"}]
    if depth == 0:
        return rng.choice(leaves)()
    kind = rng.choice(["object", "object", "array", "union", "leaf"])
    if kind == "object":
        names = rng.sample(WORDS, rng.randint(1, 3))
        return obj({name: mixed(rng, depth - 1) for name in names}, rng.sample(names, rng.randint(1, len(names))))
    if kind == "array":
        return array(mixed(rng, depth - 1), 2, rng.randint(0, 1))
    if kind == "union":
        return {"anyOf": [mixed(rng, depth - 1), mixed(rng, depth - 1)]}
    return rng.choice(leaves)()


def all_schemas():
    schemas = [schema for family in [scalars, strings, arrays, objects, unions, references] for schema in family()]
    rng = random.Random(4)
    while len(schemas) < 200:
        schemas.append(mixed(rng, 3))
    return schemas


if __name__ == "__main__":
    print("[")
    print(",\n".join(json.dumps(schema, ensure_ascii=False) for schema in all_schemas()))
    print("]")
