// What a call says whose sandbox is killed while it is under way.

import { TimeoutError, type Sandbox } from 'e2b'
import { expect, test } from 'vitest'

import { before, create, until } from './support'

// Larger than all buffers on the way. Of the file only the size is on the disk.
const LARGE = 256 << 20
const ENDLESS = '8G'

// Before, the SDK passed on whatever its HTTP library said when an answer broke off.
const anyError = before('2.30.1')

type Begun = { outcome: Promise<unknown> }

/** Calls that are under way once the promise resolves. */
const inFlight: Record<string, (sandbox: Sandbox) => Promise<Begun>> = {
  'a foreground command': async (sandbox) => {
    const outcome = sandbox.commands.run('sleep 600', { timeoutMs: 0 })
    outcome.catch(() => {})
    await until('the command to run', async () =>
      (await sandbox.commands.list()).some((process) => process.args.includes('sleep 600')),
    )
    return { outcome }
  },
  'a background command': async (sandbox) => {
    const handle = await sandbox.commands.run('sleep 600', { background: true, timeoutMs: 0 })
    return { outcome: handle.wait() }
  },
  'a command amid its output': async (sandbox) => {
    let seen = 0
    const options = { timeoutMs: 0, onStdout: (chunk: string) => void (seen += chunk.length) }
    const outcome = sandbox.commands.run('while echo x; do sleep 0.01; done', options)
    outcome.catch(() => {})
    await until('output', async () => seen > 0)
    return { outcome }
  },
  'a connected command': async (sandbox) => {
    const handle = await sandbox.commands.run('sleep 600', { background: true, timeoutMs: 0 })
    await handle.disconnect()
    return { outcome: (await sandbox.commands.connect(handle.pid, { timeoutMs: 0 })).wait() }
  },
  'a terminal': async (sandbox) => {
    const size = { cols: 80, rows: 24 }
    const handle = await sandbox.pty.create({ ...size, onData: () => {}, timeoutMs: 0 })
    return { outcome: handle.wait() }
  },
  'a watch': async (sandbox) => {
    let onExit: (error?: Error) => void = () => {}
    const outcome = new Promise((_, reject) => (onExit = reject))
    outcome.catch(() => {})
    await sandbox.files.watchDir('/tmp', () => {}, { onExit, timeoutMs: 0 })
    return { outcome }
  },
  'an upload': async (sandbox) => {
    const outcome = sandbox.files.write('large', new ArrayBuffer(LARGE))
    outcome.catch(() => {})
    await until('the upload to begin', () => sandbox.files.exists('large'))
    return { outcome }
  },
  'input that nobody reads': async (sandbox) => {
    const options = { background: true, stdin: true, timeoutMs: 0 } as const
    const handle = await sandbox.commands.run('exec sleep 600', options)
    const data = 'x'.repeat(1 << 20)
    const outcome = sandbox.commands.sendStdin(handle.pid, data, { requestTimeoutMs: 0 })
    outcome.catch(() => {})
    // Asked for after it, answered before it.
    await sandbox.commands.list()
    return { outcome }
  },
  'listing a directory again and again': async (sandbox) => {
    let lists = 0
    const outcome = (async () => {
      for (;;) {
        await sandbox.files.list('/')
        lists += 1
      }
    })()
    outcome.catch(() => {})
    await until('a list', async () => lists > 0)
    return { outcome }
  },
}

// Rules: PROXY-33, PROXY-35, PROXY-36, PROXY-37, PROXY-40, TRAP-2
test.each(Object.keys(inFlight))('%s is cut off', async (name) => {
  const sandbox = await create()
  const { outcome } = await inFlight[name](sandbox)
  const failed = outcome.then(
    () => expect.fail('it ended as if nothing had happened'),
    (error: unknown) => error,
  )
  await sandbox.kill()
  expect(await sandbox.isRunning()).toBe(false)
  expect(await failed).toBeInstanceOf(anyError ? Error : TimeoutError)
})

// Rules: PROXY-33, PROXY-37, TRAP-2
test('a download taken piece by piece never looks complete', async () => {
  const sandbox = await create()
  await sandbox.commands.run(`truncate -s ${ENDLESS} large`)
  const stream = await sandbox.files.read('large', { format: 'stream' })
  const reader = stream.getReader()
  expect((await reader.read()).done).toBe(false)
  await sandbox.kill()
  const rest = async () => {
    while (!(await reader.read()).done);
  }
  // What broke it off is the HTTP library's to say: the SDK hands the stream through.
  await expect(rest()).rejects.toThrow()
})

// Rules: PROXY-35, PROXY-40, PROXY-17, TRAP-3
test('calls to a killed sandbox', async () => {
  const sandbox = await create()
  const handle = await sandbox.commands.run('cat', { background: true, stdin: true, timeoutMs: 0 })
  handle.wait().catch(() => {})
  await sandbox.kill()
  expect(await sandbox.isRunning()).toBe(false)
  for (const call of [
    () => sandbox.commands.list(),
    () => sandbox.commands.sendStdin(handle.pid, 'x'),
    () => sandbox.files.list('/'),
    () => sandbox.files.read('/etc/hostname'),
    () => sandbox.files.write('small', 'x'),
  ]) {
    await expect(call()).rejects.toThrow(TimeoutError)
  }
  // Of a stream that does not begin the SDK says something else.
  for (const call of [
    () => sandbox.commands.run('true'),
    () => sandbox.commands.connect(handle.pid),
    () => sandbox.files.watchDir('/tmp', () => {}),
    () => sandbox.pty.create({ cols: 80, rows: 24, onData: () => {} }),
  ]) {
    await expect(call()).rejects.toThrow('Sandbox is probably not running anymore')
  }
})
