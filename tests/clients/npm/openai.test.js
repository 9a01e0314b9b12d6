// The official `openai` client for JavaScript against a running router. PENSTOCK_URL names it; tests/e2e starts it.

import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

const model = process.env.PENSTOCK_MODEL;
const client = new OpenAI({ baseURL: `${process.env.PENSTOCK_URL}/v1`, apiKey: "none", maxRetries: 0, timeout: 60_000 });
const ask = { model, temperature: 0, max_tokens: 16, messages: [{ role: "user", content: "What is the capital of France?" }] };
const schema = {
  type: "object",
  properties: { city: { enum: ["Paris", "Rome"] } },
  required: ["city"],
  additionalProperties: false,
};

test("an answer comes whole and as a stream, and both say the same", async () => {
  const whole = await client.chat.completions.create(ask);
  assert.match(whole.choices[0].message.content, /Paris/);
  let streamed = "";
  let usage;
  const options = { stream: true, stream_options: { include_usage: true } };
  for await (const chunk of await client.chat.completions.create({ ...ask, ...options })) {
    streamed += chunk.choices[0]?.delta.content ?? "";
    usage = chunk.usage ?? usage;
  }
  assert.equal(streamed, whole.choices[0].message.content);
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
});

test("an answer is held to a schema", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "place", strict: true, schema } };
  const answer = await client.chat.completions.create({ ...ask, max_tokens: 64, response_format });
  assert.ok(["Paris", "Rome"].includes(JSON.parse(answer.choices[0].message.content).city));
});

test("a tool that must be called is called, and the stream helper puts it together", async () => {
  const tools = [{ type: "function", function: { name: "weather", description: "The weather.", parameters: schema } }];
  const request = { ...ask, max_tokens: 64, tools, tool_choice: { type: "function", function: { name: "weather" } } };
  const message = await client.chat.completions.stream(request).finalMessage();
  assert.equal(message.tool_calls[0].function.name, "weather");
  assert.ok(["Paris", "Rome"].includes(JSON.parse(message.tool_calls[0].function.arguments).city));
});

test("a response streams its text", async () => {
  const stream = client.responses.stream({ model, temperature: 0, max_output_tokens: 16, input: "What is the capital of France?" });
  let streamed = "";
  stream.on("response.output_text.delta", (event) => (streamed += event.delta));
  const response = await stream.finalResponse();
  assert.ok(streamed.length > 0);
  assert.equal(response.output_text, streamed);
});

test("refusals are the client's own errors and name the field", async () => {
  await assert.rejects(client.chat.completions.create({ ...ask, model: "owl" }), OpenAI.NotFoundError);
  const refused = client.chat.completions.create({ ...ask, top_logprobs: 21, logprobs: true });
  await assert.rejects(refused, (error) => error instanceof OpenAI.BadRequestError && error.param === "top_logprobs");
});
