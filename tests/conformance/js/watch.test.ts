import { FilesystemEventType, InvalidArgumentError, NotFoundError, TimeoutError } from 'e2b'
import type { FilesystemEvent, Sandbox } from 'e2b'
import { beforeAll, expect, test } from 'vitest'

import { before, shared, until } from './support'

const { CREATE, WRITE, REMOVE, RENAME, CHMOD } = FilesystemEventType

let sandbox: Sandbox
beforeAll(async () => {
  sandbox = await shared()
  return () => sandbox.kill()
})

type Brief = [FilesystemEventType, string][]

const brief = (events: FilesystemEvent[]): Brief => events.map((event) => [event.type, event.name])

/** Without what is there twice in a row: truncation and write are two events or one. */
const once = (events: Brief) =>
  events.filter(([type, name], at) => {
    const last = events[at - 1]
    return !last || last[0] !== type || last[1] !== name
  })

const isLast = (events: FilesystemEvent[], type: FilesystemEventType, name: string) => {
  const last = events.at(-1)
  return last?.type === type && last.name === name
}

// Rules: WATCH-5, WATCH-6, WATCH-16, WATCH-21
test('each write is three events, in order', async () => {
  const events: FilesystemEvent[] = []
  await sandbox.files.makeDir('exact')
  const watch = await sandbox.files.watchDir('exact', (event) => void events.push(event))
  for (const name of ['a', 'b', 'c']) await sandbox.files.write(`exact/${name}`, 'content')
  await until('the last write', async () => isLast(events, WRITE, 'c'))
  const expected = ['a', 'b', 'c'].flatMap((name) => [CREATE, CHMOD, WRITE].map((type) => [type, name]))
  expect(brief(events)).toEqual(expected)
  await watch.stop()
})

// Rules: WATCH-6, WATCH-7, WATCH-8, WATCH-9, WATCH-10
test('a recursive watch follows the tree', async () => {
  const events: FilesystemEvent[] = []
  await sandbox.files.makeDir('tree/sub')
  const watch = await sandbox.files.watchDir('tree', (event) => void events.push(event), {
    recursive: true,
    timeoutMs: 0,
  })
  const cwd = '/home/user/tree'
  await sandbox.commands.run('echo x > sub/file; cat sub/file; mv sub moved', { cwd })
  await until('the move', async () => isLast(events, CREATE, 'moved'))
  await sandbox.commands.run('echo y >> moved/file; mkdir moved/new; rm -r moved/file', { cwd })
  await until('the removal', async () => isLast(events, REMOVE, 'moved/file'))
  expect(once(brief(events))).toEqual([
    [CREATE, 'sub/file'],
    [WRITE, 'sub/file'],
    [RENAME, 'sub'],
    [CREATE, 'moved'],
    [WRITE, 'moved/file'],
    [CREATE, 'moved/new'],
    [REMOVE, 'moved/file'],
  ])
  await sandbox.files.write('tree/moved/new/file', 'x')
  await until('the new directory', async () => isLast(events, WRITE, 'moved/new/file'))
  await watch.stop()
})

// Rules: WATCH-18
test('the end of the watched directory', async () => {
  const events: FilesystemEvent[] = []
  await sandbox.files.makeDir('ending')
  const watch = await sandbox.files.watchDir('ending', (event) => void events.push(event))
  await sandbox.files.remove('ending')
  await until('the removal', async () => events.length > 0)
  expect(brief(events)).toEqual([[REMOVE, '.']])
  await watch.stop()
})

// Rules: WATCH-11
test.skipIf(before('2.30.0'))('events with entries', async () => {
  const events: FilesystemEvent[] = []
  await sandbox.files.makeDir('entries')
  const options = { includeEntry: true }
  const watch = await sandbox.files.watchDir('entries', (event) => void events.push(event), options)
  await sandbox.files.write('entries/file', 'four')
  await until('the write', async () => isLast(events, WRITE, 'file'))
  expect(events.map((event) => event.entry?.path)).toEqual(Array(3).fill('/home/user/entries/file'))
  expect(events[2].entry?.size).toBe(4)
  await sandbox.files.rename('entries/file', '/tmp/file')
  await until('the move', async () => isLast(events, RENAME, 'file'))
  expect(events.at(-1)?.entry).toBeUndefined()
  await watch.stop()
})

// Rules: WATCH-21
test('a stopped watch calls back no more', async () => {
  const events: FilesystemEvent[] = []
  const ends: unknown[] = []
  await sandbox.files.makeDir('stopped')
  const watch = await sandbox.files.watchDir('stopped', (event) => void events.push(event), {
    onExit: (error) => void ends.push(error),
  })
  await watch.stop()
  await until('the end', async () => ends.length > 0)
  await sandbox.files.write('stopped/file', 'x')
  expect([events.length, ends.length]).toEqual([0, 1])
})

// Rules: WATCH-17, WATCH-21
test('a watch ends in time', async () => {
  const ends: unknown[] = []
  await sandbox.files.watchDir('/tmp', () => {}, {
    timeoutMs: 5_000,
    onExit: (error) => void ends.push(error),
  })
  await until('the end', async () => ends.length > 0)
  expect(ends).toHaveLength(1)
  expect(ends[0]).toBeInstanceOf(TimeoutError)
})

// Rules: WATCH-1, WATCH-2
test('what cannot be watched', async () => {
  const watch = (path: string) => sandbox.files.watchDir(path, () => {})
  await expect(watch('/not/there')).rejects.toThrow(NotFoundError)
  await expect(watch('/etc/passwd')).rejects.toThrow(InvalidArgumentError)
})

// Rules: WATCH-4
test.skipIf(before('2.30.0'))('network mounts may be asked for', async () => {
  const events: FilesystemEvent[] = []
  await sandbox.files.makeDir('local')
  const options = { allowNetworkMounts: true }
  const watch = await sandbox.files.watchDir('local', (event) => void events.push(event), options)
  await sandbox.files.write('local/file', 'x')
  await until('the write', async () => isLast(events, WRITE, 'file'))
  await watch.stop()
})
