// Embed texts with a GGUF file as a project in Node would, with node-llama-cpp.
//
//   node embed.mjs HOME < request.json > answer.json
//
// HOME holds node_modules. Request: {"path", "texts"}; answer: a vector for each text.

import { readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const library = join(process.argv[2], 'node_modules', 'node-llama-cpp', 'dist', 'index.js');
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(library).href);
const { path, texts } = JSON.parse(readFileSync(0, 'utf-8'));
const llama = await getLlama({ gpu: false, build: 'never', progressLogs: false, logLevel: LlamaLogLevel.error });
const model = await llama.loadModel({ modelPath: path, gpuLayers: 0 });
const context = await model.createEmbeddingContext({ threads: 1 });
const answer = [];
for (const text of texts) {
    answer.push(Array.from((await context.getEmbeddingFor(text)).vector));
}
await context.dispose();
await model.dispose();
await llama.dispose();
writeSync(1, JSON.stringify(answer));
