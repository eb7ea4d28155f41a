// The code interpreter: state, contexts, results and errors.

import { InvalidArgumentError, NotFoundError, SandboxError, type Sandbox } from '@e2b/code-interpreter'
import { beforeAll, expect, test } from 'vitest'

import { create, onlyCreates, shared, stillWorks } from './interpreter'

let sandbox: Sandbox

beforeAll(async () => {
  sandbox = await shared()
  return () => sandbox.kill()
})

const where: Record<string, string> = {
  python: 'import os; print(os.getcwd())',
  javascript: 'console.log(process.cwd())',
  typescript: 'console.log(process.cwd() as string)',
  bash: 'pwd',
}

// Rules: INT-1, INT-6, INT-23, INT-18
test('a cell finds what the last one left', async () => {
  const own = await create()
  const first = await own.runCode('x = 41')
  expect([first.error, first.text, first.executionCount]).toEqual([undefined, undefined, 1])
  const second = await own.runCode('x + 1')
  expect([second.text, second.executionCount]).toEqual(['42', 2])
  expect((await own.runCode('x + 1', { language: 'python' })).text).toBe('42')
})

// Rules: INT-7, INT-6, INT-23
test.each([
  ['js', 'javascript', 'const x = 41', 'x + 1', '42'],
  ['ts', 'typescript', 'const y: number = 41', '(y as number) + 1', '42'],
  ['JavaScript', 'js', 'globalThis.z = 41', 'z + 1', '42'],
])('%s is %s', async (alias, language, keep, ask, answer) => {
  expect((await sandbox.runCode(keep, { language: alias })).error).toBeUndefined()
  expect((await sandbox.runCode(ask, { language })).text).toBe(answer)
})

// Rules: INT-23, INT-20
test('bash', async () => {
  await sandbox.runCode('x=41; cd /tmp', { language: 'bash' })
  const execution = await sandbox.runCode('echo $((x + 1)) $PWD', { language: 'bash' })
  expect(execution.logs).toEqual({ stdout: ['42 /tmp\n'], stderr: [] })
  await sandbox.runCode('cd', { language: 'bash' })
  const failed = await sandbox.runCode('(exit 3)', { language: 'bash' })
  expect(failed.error).toMatchObject({ name: 'ExitCode', value: '3' })
  expect(typeof failed.error?.traceback).toBe('string')
})

// Rules: INT-5, INT-14
test.each(Object.keys(where))('a context of %s begins where it is told', async (language) => {
  const context = await sandbox.createCodeContext({ cwd: '/tmp', language })
  expect(context).toMatchObject({ language, cwd: '/tmp' })
  const execution = await sandbox.runCode(where[language], { context })
  expect(execution.logs.stdout.join('')).toBe('/tmp\n')
  const atHome = await sandbox.runCode(where.python)
  expect(atHome.logs.stdout.join('')).toBe('/home/user\n')
})

// Rules: INT-5, INT-12, INT-13, INT-9
test.skipIf(onlyCreates)('contexts are listed, restarted and removed', async () => {
  const before = await sandbox.listCodeContexts()
  const context = await sandbox.createCodeContext()
  expect(await sandbox.listCodeContexts()).toEqual([...before, context])
  await sandbox.runCode('x = 1', { context })
  await sandbox.restartCodeContext(context)
  const execution = await sandbox.runCode('x', { context })
  expect(execution.error).toMatchObject({ name: 'NameError', value: "name 'x' is not defined" })
  expect(execution.executionCount).toBe(1)
  await sandbox.removeCodeContext(context.id)
  expect(await sandbox.listCodeContexts()).toEqual(before)
  await expect(sandbox.runCode('1', { context })).rejects.toThrow(NotFoundError)
  await expect(sandbox.removeCodeContext(context)).rejects.toThrow(NotFoundError)
  await expect(sandbox.restartCodeContext(context)).rejects.toThrow(NotFoundError)
})

// Rules: INT-8, INT-9, INT-10
test('what is asked wrongly', async () => {
  const context = await sandbox.createCodeContext()
  const both = { context, language: 'python' } as object
  await expect(sandbox.runCode('1', both)).rejects.toThrow(InvalidArgumentError)
  const nobody = { id: 'nobody', language: 'python', cwd: '/' }
  await expect(sandbox.runCode('1', { context: nobody })).rejects.toThrow(NotFoundError)
  for (const call of [
    () => sandbox.runCode('1', { language: 'cobol' }),
    () => sandbox.createCodeContext({ language: 'cobol' }),
    () => sandbox.createCodeContext({ cwd: '/nowhere' }),
  ]) {
    await expect(call()).rejects.toThrow(SandboxError)
    // The reason is in the answer, which this SDK keeps to itself.
    await expect(call()).rejects.toThrow(/^500/)
  }
  await stillWorks(sandbox, { context })
})

// Rules: INT-19
test('results', async () => {
  const execution = await sandbox.runCode("display(1)\ndisplay({'text/html': '<b>2</b>'}, raw=True)\n'three'")
  expect(execution.results.map((result) => result.text)).toEqual(['1', undefined, 'three'])
  expect(execution.results.map((result) => result.isMainResult)).toEqual([false, false, true])
  expect(execution.results[1].html).toBe('<b>2</b>')
  expect(execution.results[1].formats()).toEqual(['html'])
  expect(execution.text).toBe('three')
  const list = await sandbox.runCode('[1, {"a": None}]')
  expect(list.results[0].json).toEqual([1, { a: null }])
  expect(list.text).toBe("[1, {'a': None}]")
  const shown = await sandbox.runCode("({ a: 'b' })", { language: 'js' })
  expect(shown.text).toBe("{ a: 'b' }")
  const nothing = await sandbox.runCode('x = 1')
  expect([nothing.text, nothing.results]).toEqual([undefined, []])
})

// Rules: INT-19
test('a plot', async () => {
  const code = `
import matplotlib.pyplot as plt
plt.plot([1, 2, 3], [4, 5, 6], label='line')
plt.title('Title'); plt.xlabel('x'); plt.ylabel('y (m)')
plt.show()
`
  const [result] = (await sandbox.runCode(code)).results
  expect(Buffer.from(result.png ?? '', 'base64').subarray(1, 4).toString()).toBe('PNG')
  expect(result.chart).toMatchObject({
    type: 'line',
    title: 'Title',
    x_label: 'x',
    y_unit: 'm',
    elements: [
      {
        label: 'line',
        points: [
          [1, 4],
          [2, 5],
          [3, 6],
        ],
      },
    ],
  })
})

// Rules: INT-20
test.each([
  ['python', '1 / 0', 'ZeroDivisionError', 'division by zero'],
  ['js', 'nobody', 'ReferenceError', 'nobody is not defined'],
  ['ts', "throw new TypeError('odd' as string)", 'TypeError', 'odd'],
])('an error in %s', async (language, code, name, value) => {
  const execution = await sandbox.runCode(code, { language })
  expect(execution.error).toMatchObject({ name, value })
  expect(execution.error?.traceback).toContain(name)
  expect((await sandbox.runCode('1 + 1', { language })).text).toBe('2')
})

// Rules: INT-27, INT-28
test('variables of the sandbox and of a call', async () => {
  const own = await create({ envs: { GREETING: 'of the sandbox' } })
  const odd = 'it\'s "quoted"\n$HOME `id` \\ \u2028 \u{1f980}'
  for (const [language, code] of [
    ['python', "import os; print(os.environ.get('NAME', 'none'), end='')"],
    ['js', "process.stdout.write(process.env.NAME ?? 'none')"],
    ['ts', "process.stdout.write((process.env.NAME as string) ?? 'none')"],
    ['bash', 'printf %s "${NAME-none}"'],
  ]) {
    const show = async (name: string, envs?: Record<string, string>) => {
      const execution = await own.runCode(code.replaceAll('NAME', name), { language, envs })
      expect(execution.error).toBeUndefined()
      return execution.logs.stdout.join('')
    }
    expect(await show('GREETING')).toBe('of the sandbox')
    expect(await show('GREETING', { GREETING: 'of the call' })).toBe('of the call')
    expect(await show('GREETING')).toBe('of the sandbox')
    expect(await show('ODD', { ODD: odd })).toBe(odd)
    expect(await show('ODD')).toBe('none')
  }
})

// Rules: INT-29
test('what a cell may be written in', async () => {
  expect((await sandbox.runCode('  x = 1\n  x + 1')).text).toBe('2')
  expect((await sandbox.runCode('import asyncio\nawait asyncio.sleep(0, 7)')).text).toBe('7')
  const shell = await sandbox.runCode('!echo $((40 + 2))')
  expect(shell.logs.stdout.join('').trim()).toBe('42')
  const language = 'js'
  const later = "await new Promise((done) => setTimeout(() => done('later'), 1))"
  expect((await sandbox.runCode(later, { language })).text).toBe('later')
  const path = "import path from 'node:path'; path.join('a', 'b')"
  expect((await sandbox.runCode(path, { language })).text).toBe('a/b')
  expect((await sandbox.runCode("import fs from 'node:fs'; typeof fs", { language: 'ts' })).text).toBe('object')
})
