// Run GGUF files as a project in Node would, with node-llama-cpp.
//
//   node llama.mjs HOME < request.json > answer.json
//
// HOME holds node_modules. Request: {"paths", "ids", "n"}; answer: of every path the n greedy tokens behind the ids.

import { readFileSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';

const library = join(process.argv[2], 'node_modules', 'node-llama-cpp', 'dist', 'index.js');
const { getLlama, LlamaLogLevel } = await import(pathToFileURL(library).href);
const { paths, ids, n } = JSON.parse(readFileSync(0, 'utf-8'));
const llama = await getLlama({ gpu: false, build: 'never', progressLogs: false, logLevel: LlamaLogLevel.error });
const answer = [];
for (const modelPath of paths) {
    const model = await llama.loadModel({ modelPath, gpuLayers: 0 });
    const context = await model.createContext({ contextSize: 64, threads: 1 });
    const found = [];
    for await (const token of context.getSequence().evaluate(ids, { temperature: 0 })) {
        found.push(token);
        if (found.length === n) break;
    }
    answer.push(found);
    await context.dispose();
    await model.dispose();
}
await llama.dispose();
writeSync(1, JSON.stringify(answer));
