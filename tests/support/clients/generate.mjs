// Run an exported directory as a web project would: transformers.js, or ONNX Runtime's own build for browsers.
//
//   node generate.mjs HOME < request.json > answer.json
//
// HOME holds node_modules. Request: {"task", "directory", …}; what else there is and the answer, see TASKS. No network.

import { readFileSync } from 'node:fs';
import { basename, join } from 'node:path';
import { pathToFileURL } from 'node:url';

const modules = join(process.argv[2], 'node_modules');
const load = (...parts) => import(pathToFileURL(join(modules, ...parts)).href);

async function transformers() {
    const library = await load('@huggingface', 'transformers', 'dist', 'transformers.node.mjs');
    library.env.allowRemoteModels = false;
    library.env.useFSCache = false;
    return library;
}

// No file, no dtype is named, as in `pipeline('feature-extraction', directory)`: config.json has to say it.
async function run(task, { directory, text }, options) {
    const { pipeline } = await transformers();
    return (await pipeline(task, directory))(text, options);
}

const int64 = (Tensor, values) => new Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);

const TASKS = {
    // prompts (ids or texts), n -> of each {"ids": those of the prompt, "generated": new ids, the end token with them}
    async generate({ directory, prompts, n }) {
        const { AutoModelForCausalLM, AutoTokenizer, Tensor } = await transformers();
        const tokenizer = await AutoTokenizer.from_pretrained(directory);
        const model = await AutoModelForCausalLM.from_pretrained(directory);
        const answers = [];
        for (const prompt of prompts) {
            const ids = typeof prompt === 'string' ? tokenizer.encode(prompt) : prompt;
            const output = await model.generate({
                inputs: int64(Tensor, ids),
                attention_mask: int64(Tensor, Array(ids.length).fill(1)),
                max_new_tokens: n,
                do_sample: false,
                repetition_penalty: 1.0,
                no_repeat_ngram_size: 0,
            });
            answers.push({ ids, generated: output.tolist()[0].map(Number).slice(ids.length) });
        }
        return answers;
    },

    // messages -> {"text": the prompt that the directory's chat template makes}
    async template({ directory, messages }) {
        const { AutoTokenizer } = await transformers();
        const tokenizer = await AutoTokenizer.from_pretrained(directory);
        return { text: tokenizer.apply_chat_template(messages, { add_generation_prompt: true, tokenize: false }) };
    },

    // text -> {"vector"}
    async embed(request) {
        const output = await run('feature-extraction', request, { pooling: 'mean', normalize: true });
        return { vector: output.tolist()[0] };
    },

    // text -> {"labels": [{"label", "score"}]}
    async classify(request) {
        return { labels: await run('text-classification', request, { top_k: null }) };
    },

    // text -> {"tokens": [{"entity", "score", "word", "index"}]}
    async tokens(request) {
        return { tokens: await run('token-classification', request, { ignore_labels: [] }) };
    },

    // file, data (names of external data, relative to directory), ids, n, ends -> {"generated"}; WebAssembly, one thread
    async wasm({ directory, file, data, ids, n, ends }) {
        const ort = await load('onnxruntime-web', 'dist', 'ort.node.min.mjs');
        ort.env.wasm.numThreads = 1;
        const read = (name) => new Uint8Array(readFileSync(join(directory, name)));
        const externalData = data.map((name) => ({ path: basename(name), data: read(name) }));
        const session = await ort.InferenceSession.create(read(file), { executionProviders: ['wasm'], externalData });
        const cache = {};
        for (const { name, shape } of session.inputMetadata) {
            if (name.startsWith('past_key_values.')) {
                cache[name] = new ort.Tensor('float32', new Float32Array(0), [1, shape[1], 0, shape[3]]);
            }
        }
        const generated = [];
        let next = ids;
        for (let seen = 0; generated.length < n && !ends.includes(generated.at(-1)); ) {
            seen += next.length;
            const feeds = { input_ids: int64(ort.Tensor, next), attention_mask: int64(ort.Tensor, Array(seen).fill(1)) };
            const output = await session.run({ ...feeds, ...cache });
            const logits = output.logits.data.slice(-output.logits.dims.at(-1));
            next = [logits.reduce((best, value, index) => (value > logits[best] ? index : best), 0)];
            generated.push(...next);
            for (const name in cache) cache[name] = output[name.replace('past_key_values', 'present')];
        }
        return { generated };
    },
};

const request = JSON.parse(readFileSync(0, 'utf8'));
process.stdout.write(JSON.stringify(await TASKS[request.task](request)));
