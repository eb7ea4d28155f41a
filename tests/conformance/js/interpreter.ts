import { Sandbox } from '@e2b/code-interpreter'
import { onTestFinished } from 'vitest'

import { before } from './support'

/** Whether the SDK only creates contexts, as older ones do; the newest has to have the rest. */
export const onlyCreates = !('restartCodeContext' in Sandbox.prototype) && before('2.51.0')

type CreateOptions = NonNullable<Parameters<typeof Sandbox.create>[0]>

/** A code interpreter that ends with the test. */
export async function create(options: object = {}): Promise<Sandbox> {
  const sandbox = await Sandbox.create({ timeoutMs: 300_000, ...options } as CreateOptions)
  onTestFinished(async () => {
    await sandbox.kill()
  })
  return sandbox
}

/** A code interpreter that the tests of one file share; they must not disturb each other. */
export const shared = () => Sandbox.create({ timeoutMs: 3_600_000 })

type Context = Awaited<ReturnType<Sandbox['createCodeContext']>>

/** Asserts that a cell runs as if nothing had been before. */
export async function stillWorks(sandbox: Sandbox, options: { context?: Context } = {}) {
  const execution = await sandbox.runCode('1 + 1', { timeoutMs: 60_000, ...options })
  if (execution.error || execution.text !== '2') throw new Error(JSON.stringify(execution))
}

/** A cell in each language that prints `begun`, in one write, and ends when that file is there. */
export const latched: Record<string, (path: string) => string> = {
  python: (path) =>
    `print('begun\\n', end='', flush=True)\nimport os, time\nwhile not os.path.exists('${path}'): time.sleep(0.01)`,
  javascript: (path) =>
    `console.log('begun')\nwhile (!require('fs').existsSync('${path}'))` +
    ' await new Promise((done) => setTimeout(done, 10))',
  bash: (path) => `echo begun; until [ -e ${path} ]; do sleep 0.01; done`,
}
