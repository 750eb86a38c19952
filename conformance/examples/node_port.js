#!/usr/bin/env node
// A whole port for Node 18 or later, without packages, as an executable (BACK-5): one JSON object per line in, one out.
// Arrays are flat and row by row, with their shape beside them. The order is that of pure_python_port.py, which says
// more about each step. Names as in spec/10-notation.md. Clauses: BACK-1, BACK-5. Source: ours.
"use strict";
const { createHash } = require("crypto");

const demand = (condition, otherwise) => { if (!condition) throw new Error(otherwise); };
const isSize = (value) => Number.isInteger(value) && value >= 1;
const product = (sizes) => sizes.reduce((a, b) => a * b, 1);
const sum = (values) => values.reduce((a, b) => a + b, 0);
const dot = (left, right) => left.reduce((total, value, i) => total + value * right[i], 0);
const transpose = (rows, width = rows.length) => Array.from({ length: width }, (_, k) => rows.map((row) => row[k]));
const timesTranspose = (left, right) => left.map((row) => right.map((other) => dot(row, other)));
const rowsOf = (data, width) =>
  Array.from({ length: data.length / width }, (_, i) => data.slice(i * width, (i + 1) * width));

// Step 1: the Sinkhorn projection (spec/30-sinkhorn-projection.md)
function logSoftmax(line) {
  const top = Math.max(...line); // SINK-3: first the maximum, then the logarithm
  const shifted = line.map((value) => value - top);
  const log = Math.log(sum(shifted.map(Math.exp)));
  return shifted.map((value) => value - log);
}

function softmax(line) {
  const weights = logSoftmax(line).map(Math.exp);
  const total = sum(weights);
  return weights.map((weight) => weight / total);
}

function project(logits, iterations) {
  demand(logits.flat().every(Number.isFinite), "mix_logits holds NaN or an infinity"); // SINK-9
  demand(isSize(iterations), "iterations is no integer >= 1"); // SINK-2
  const largest = Math.max(...logits.flat());
  let matrix = logits.map((row) => row.map((value) => value - largest));
  const trace = [];
  for (let half = 0; half < 2 * iterations - 1; half++) { // SINK-3: rows, columns, exactly K times
    trace.push((matrix = (half ? transpose(matrix) : matrix).map(logSoftmax)));
  }
  const columns = transpose(matrix).map(softmax); // SINK-3: the last column step
  const rows = transpose(columns);
  const rowSums = rows.map(sum);
  const [n, m] = [rows.length, Math.max(...rowSums)];
  const mixing = rows.map((row, i) => row.map((p) => p / m + (1 - rowSums[i] / m) / n)); // SINK-4
  return { trace, columns, rows, rowSums, n, m, mixing };
}

// Step 2: its gradient (spec/45-gradients.md)
function projectVjp({ trace, columns, rows, rowSums, n, m }, gradMixing) {
  const gradRowSums = gradMixing.map(sum);
  const added = gradRowSums.map((total) => -total / (n * m));
  const inner = sum(rows.map((row, i) => dot(row, gradMixing[i])));
  added[rowSums.indexOf(m)] += (dot(rowSums, gradRowSums) / n - inner) / m ** 2; // GRAD-2: the first argmax
  const gradRows = gradMixing.map((row, i) => row.map((g) => g / m + added[i]));
  let grad = transpose(gradRows).map((line, k) => {
    const mean = dot(columns[k], line);
    return line.map((g, i) => columns[k][i] * (g - mean));
  });
  for (const matrix of trace.reverse()) { // GRAD-1: every half step by its own matrix
    grad = transpose(grad).map((line, i) => {
      const total = sum(line);
      return line.map((g, k) => g - Math.exp(matrix[i][k]) * total);
    });
  }
  return grad;
}

function eachMatrix({ shape, data }, iterations, work) {
  const n = shape[shape.length - 1];
  demand(shape.length >= 2 && n >= 1 && shape[shape.length - 2] === n, "mix_logits is not (..., n, n)"); // SINK-1
  if (!data.length) project([[0]], iterations); // SINK-2, without matrices too
  return { shape, data: rowsOf(data, n * n).flatMap((part, at) => work(rowsOf(part, n), at).flat()) };
}

// Step 3: the adapter (spec/40-residual-mixing.md)
const sigmoid = (value) => (value >= 0 ? 1 / (1 + Math.exp(-value)) : Math.exp(value) / (1 + Math.exp(value)));

function layerOf({ x, mix_logits, gate_logit, basis, iterations }) {
  const [n, r, d] = basis.shape;
  demand(basis.shape.length === 3 && n * r * d > 0, "basis is not (n, r, d)"); // MIX-1
  demand(String(mix_logits.shape) === `${n},${n}`, "mix_logits is not (n, n)");
  demand(x.shape[x.shape.length - 1] === d, "x is not (..., d)");
  demand(gate_logit.data.length === 1, "gate_logit is not a single value"); // MIX-4
  demand([...gate_logit.data, ...basis.data].every(Number.isFinite), "gate_logit or basis is not finite"); // MIX-11
  const [rows, projection] = [rowsOf(basis.data, d), project(rowsOf(mix_logits.data, n), iterations)];
  const gram = timesTranspose(rows, rows); // MIX-6: kappa = (trace (A A^T)^8)^(1/8), after dividing by the trace
  const tau = sum(gram.map((row, i) => row[i]));
  demand(tau > 0, "basis is zero"); // MIX-6
  const first = gram.map((row) => row.map((value) => value / tau));
  const second = timesTranspose(first, first);
  const fourth = timesTranspose(second, second);
  const eighth = sum(fourth.map((row) => dot(row, row))); // its trace
  const kappa = tau * eighth ** 0.125;
  const [gate, closed] = [sigmoid(gate_logit.data[0]), sigmoid(-gate_logit.data[0])];
  const alpha = gate / kappa; // MIX-5
  const columns = transpose(rows, d);
  const change = (z, matrix) => // MIX-3: sum_j M_ij z_j - z_i
    z.map((own, at) => sum(matrix[Math.floor(at / r)].map((m, j) => m * z[j * r + (at % r)])) - own);
  const write = (token, moved) => token.map((t, k) => t + alpha * dot(columns[k], moved)); // MIX-2
  const powers = [first, second, fourth];
  return { n, r, d, rows, columns, projection, powers, eighth, kappa, gate, closed, alpha, change, write };
}

function adapterForward(inputs) {
  const { rows, d, projection, change, write } = layerOf(inputs);
  const tokens = rowsOf(inputs.x.data, d);
  const moved = timesTranspose(tokens, rows).map((z) => change(z, projection.mixing)); // MIX-2: z = A x
  return { shape: inputs.x.shape, data: tokens.flatMap((token, t) => write(token, moved[t])) };
}

// Step 4: its gradient (spec/45-gradients.md)
function adapterVjp(inputs) {
  const { n, r, d, rows, columns, alpha, gate, kappa, projection, projection: { mixing }, ...layer } = layerOf(inputs);
  demand(String(inputs.cotangent.shape) === String(inputs.x.shape), "cotangent is not shaped as x");
  const [tokens, upstream] = [rowsOf(inputs.x.data, d), rowsOf(inputs.cotangent.data, d)];
  const [z, w] = [timesTranspose(tokens, rows), timesTranspose(upstream, rows)];
  const moved = z.map((streams) => layer.change(streams, mixing));
  const movedBack = w.map((streams) => layer.change(streams, transpose(mixing)));
  const [zOf, wOf, movedOf, backOf] = [z, w, moved, movedBack].map((part) => transpose(part, n * r)); // GRAD-7
  const [xOf, upstreamOf] = [tokens, upstream].map((part) => transpose(part, d));
  const gradMixing = mixing.map((row, i) => row.map((_, j) => {
    let total = 0;
    for (let k = 0; k < r; k++) total += dot(wOf[i * r + k], zOf[j * r + k]);
    return alpha * total;
  }));
  const gradAlpha = sum(w.map((streams, t) => dot(streams, moved[t])));
  const gradKappa = (-gradAlpha * gate) / kappa ** 2; // GRAD-6: A also sets kappa, whose gradient is C^7 A
  const seventh = layer.powers.reduce(timesTranspose, columns);
  const factor = (2 * gradKappa * layer.eighth ** 0.125) / layer.eighth;
  const gradBasis = rows.flatMap((row, m) => row.map((_, k) => // GRAD-5: A writes and has read
    alpha * (dot(movedOf[m], upstreamOf[k]) + dot(backOf[m], xOf[k])) + factor * seventh[k][m]));
  return {
    x: { shape: inputs.x.shape, data: upstream.flatMap((token, t) => layer.write(token, movedBack[t])) }, // GRAD-4
    mix_logits: { shape: [n, n], data: projectVjp(projection, gradMixing).flat() },
    gate_logit: { shape: inputs.gate_logit.shape, data: [(gradAlpha * gate * layer.closed) / kappa] },
    basis: { shape: inputs.basis.shape, data: gradBasis },
  };
}

// Step 5: the state file (spec/60-state-file.md)
function loadState({ data }) {
  const file = Buffer.from(data, "base64");
  const start = file.length >= 8 ? 8 + Number(file.readBigUInt64LE(0)) : Infinity;
  demand(start <= file.length, "cut off before the end of the header"); // STATE-4
  const text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(file.subarray(8, start));
  const { __metadata__: metadata, ...header } = JSON.parse(text);
  demand(Object.values(metadata).every((value) => typeof value === "string"), "metadata that is not text");
  const { format, spec_version, config, content_sha256 } = metadata;
  demand(format === "crma" && /^0\.(0|[1-9][0-9]{0,8})$/.test(spec_version), "format or spec_version"); // STATE-7
  for (const json of [text, config]) { // JSON.parse reads 2.0 and 2e0 as 2, but only an integer is a size
    demand(!/[-.eE]/.test(json.replace(/"(\\.|[^"\\])*"/g, "")), "a number that is no integer");
  }
  const { layers, streams: n, rank: r, hidden_size: d, iterations, ...unknown } = JSON.parse(config);
  demand(Object.keys(unknown).length === 0, "a key in config that is not known"); // STATE-8: it may change results
  demand([layers, n, r, d, iterations].every(isSize) && n * r <= d, "sizes that no adapter has");
  const shapes = { mix_logits: [layers, n, n], gate_logits: [layers], bases: [layers, n, r, d] };
  demand(String(Object.keys(header).sort()) === "bases,gate_logits,mix_logits", "other arrays than those of a state");
  const [state, checksum] = [{ iterations }, createHash("sha256").update(config)];
  const spans = Object.entries(shapes).map(([name, shape]) => { // STATE-5: by name, wherever they lie
    const { dtype, shape: stored, data_offsets: [begin, end, ...more] } = header[name];
    demand(JSON.stringify([dtype, stored]) === JSON.stringify(["F32", shape]), `${name} is not F32 [${shape}]`);
    demand(more.length === 0 && Number.isInteger(begin), `${name} has no two integers for its place`);
    demand(begin >= 0 && end <= file.length - start, `${name} lies outside the file`);
    demand(end - begin === 4 * product(shape), `${name} has not as many bytes as its shape`);
    const values = Array.from({ length: product(shape) }, (_, i) => file.readFloatLE(start + begin + 4 * i));
    demand(values.every(Number.isFinite), `${name} holds NaN or an infinity`);
    checksum.update(file.subarray(start + begin, start + end));
    state[name] = { shape, data: values };
    return [begin, end];
  });
  const end = spans.sort((a, b) => a[0] - b[0]).reduce((at, [begin, next]) => (begin === at ? next : NaN), 0);
  demand(end === file.length - start, "arrays overlap, or leave bytes uncovered");
  demand([undefined, checksum.digest("hex")].includes(content_sha256), "content_sha256 of another content"); // STATE-6
  return state;
}

// The protocol (BACK-5)
const functions = {
  describe: () => ({
    ...{ name: "node-cpu", version: `example, Node ${process.version}`, device: "cpu", parameter_dtype: "float64" },
    x_dtypes: ["float64", "float32", "float16", "bfloat16"], // MIX-10: who asks rounds y once
  }),
  sinkhorn_projection: ({ mix_logits, iterations }) =>
    eachMatrix(mix_logits, iterations, (logits) => project(logits, iterations).mixing),
  sinkhorn_projection_vjp: ({ mix_logits, cotangent, iterations }) => {
    demand(String(cotangent.shape) === String(mix_logits.shape), "cotangent is not shaped as mix_logits");
    return eachMatrix(mix_logits, iterations, (logits, at) =>
      projectVjp(project(logits, iterations), rowsOf(rowsOf(cotangent.data, logits.length ** 2)[at], logits.length)));
  },
  adapter_forward: adapterForward,
  adapter_vjp: adapterVjp,
  load_state: loadState,
};

function answer({ id, function: name, arguments: inputs }) {
  try {
    for (const value of Object.values(inputs)) if (value?.shape) value.data = value.data.map(Number); // "NaN"
    return { id, result: functions[name](inputs) };
  } catch (error) {
    return { id, error: error.message };
  }
}

const readable = (_, value) => (Object.is(value, -0) ? "-0" : // which JSON.stringify would write without its sign
  typeof value === "number" && !Number.isFinite(value) ? String(value) : value);
require("readline").createInterface({ input: process.stdin, crlfDelay: Infinity })
  .on("line", (line) => process.stdout.write(`${JSON.stringify(answer(JSON.parse(line)), readable)}\n`));
