import { defineConfig } from 'vitest/config'

import manifest from './package.json' with { type: 'json' }

// One project for each published SDK: the same files, with other packages behind the names `e2b` and
// `@e2b/code-interpreter`, whose own `e2b` is of the same release.
const project = (name: 'newest' | 'oldest') => ({
  test: {
    name,
    include: ['*.test.ts'],
    alias: { '@e2b/code-interpreter': `code-interpreter-${name}`, e2b: `e2b-${name}` },
    env: { E2B_SDK: manifest.devDependencies[`e2b-${name}`].split('@')[1] },
    testTimeout: 240_000,
    hookTimeout: 240_000,
    // Files of one project run side by side, as several users would.
    fileParallelism: true,
    maxWorkers: 2,
  },
})

export default defineConfig({
  test: { projects: [project('newest'), project('oldest')] },
})
