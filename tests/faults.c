/* Makes the n-th change of the file system fail, or kills the process there.

   Built and loaded by tests/forked.py as LD_PRELOAD. `fault_arm` says below which folders changes
   count, which of them fails, and with which error; 0 is a kill. Once `lasting`, all that follow
   of the same kind fail too, as on a full disk. `pause` is microseconds, at most, to wait before
   each change. A log has one line a change. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char folders[2][PATH_MAX];
static int at, number, lasting, count, armed, file = -1;
static unsigned pause_most, chance;

void fault_arm(const char *one, const char *other, const char *log, int n, int error, int last,
               unsigned pause, unsigned seed) {
  snprintf(folders[0], PATH_MAX, "%s", one);
  snprintf(folders[1], PATH_MAX, "%s", other);
  file = syscall(SYS_openat, AT_FDCWD, log, O_CREAT | O_WRONLY | O_APPEND | O_CLOEXEC, 0600);
  at = n, number = error, lasting = last, count = 0, pause_most = pause, chance = seed;
  armed = 1;
}

/* Whether a change is to fail; `room` says that it takes some. */
static int strikes(const char *what, int folder, const char *path, int room) {
  char full[PATH_MAX] = "", link[64];
  if (!armed) return 0;
  if (path == NULL || path[0] != '/') { /* below an open folder, or a file of that number itself */
    snprintf(link, sizeof link, folder == AT_FDCWD ? "/proc/self/cwd" : "/proc/self/fd/%d", folder);
    ssize_t length = readlink(link, full, PATH_MAX - 1);
    full[length < 0 ? 0 : length] = 0;
    if (path) strncat(strncat(full, "/", 2), path, PATH_MAX - strlen(full) - 2);
  } else
    snprintf(full, PATH_MAX, "%s", path);
  if (strncmp(full, folders[0], strlen(folders[0])) && strncmp(full, folders[1], strlen(folders[1])))
    return 0;
  int mine = __atomic_add_fetch(&count, 1, __ATOMIC_SEQ_CST);
  dprintf(file, "%s %s\n", what, full);
  if (pause_most) usleep(rand_r(&chance) % pause_most);
  if (!at || mine < at || (mine > at && !(lasting && room))) return 0;
  if (lasting && !room) return 0;
  if (!number) kill(getpid(), SIGKILL);
  errno = number;
  return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define WRITES(flags) ((flags) & (O_CREAT | O_WRONLY | O_RDWR | O_TRUNC))
#define MODE(flags) \
  mode_t mode = 0; \
  if ((flags) & (O_CREAT | O_TMPFILE)) { va_list list; va_start(list, flags); mode = va_arg(list, mode_t); va_end(list); }

int open(const char *path, int flags, ...) {
  MODE(flags)
  if (WRITES(flags) && strikes("open", AT_FDCWD, path, 1)) return -1;
  return REAL(open)(path, flags, mode);
}
int open64(const char *path, int flags, ...) {
  MODE(flags)
  if (WRITES(flags) && strikes("open", AT_FDCWD, path, 1)) return -1;
  return REAL(open64)(path, flags, mode);
}
int openat(int folder, const char *path, int flags, ...) {
  MODE(flags)
  if (WRITES(flags) && strikes("open", folder, path, 1)) return -1;
  return REAL(openat)(folder, path, flags, mode);
}
int openat64(int folder, const char *path, int flags, ...) {
  MODE(flags)
  if (WRITES(flags) && strikes("open", folder, path, 1)) return -1;
  return REAL(openat64)(folder, path, flags, mode);
}
#define CHANGE(type, name, parameters, arguments, folder, path, room) \
  type name parameters { return strikes(#name, folder, path, room) ? -1 : REAL(name) arguments; }
CHANGE(ssize_t, write, (int fd, const void *from, size_t n), (fd, from, n), fd, NULL, 1)
CHANGE(ssize_t, pwrite, (int fd, const void *from, size_t n, off_t to), (fd, from, n, to), fd, NULL, 1)
CHANGE(ssize_t, pwrite64, (int fd, const void *from, size_t n, off64_t to), (fd, from, n, to), fd, NULL, 1)
CHANGE(ssize_t, writev, (int fd, const struct iovec *from, int n), (fd, from, n), fd, NULL, 1)
CHANGE(int, ftruncate, (int fd, off_t n), (fd, n), fd, NULL, 1)
CHANGE(int, ftruncate64, (int fd, off64_t n), (fd, n), fd, NULL, 1)
CHANGE(int, fsync, (int fd), (fd), fd, NULL, 0)
CHANGE(int, mkdir, (const char *path, mode_t mode), (path, mode), AT_FDCWD, path, 1)
CHANGE(int, rename, (const char *from, const char *to), (from, to), AT_FDCWD, to, 0)
CHANGE(int, symlink, (const char *to, const char *path), (to, path), AT_FDCWD, path, 1)
CHANGE(int, link, (const char *from, const char *path), (from, path), AT_FDCWD, path, 1)
CHANGE(int, linkat, (int f, const char *from, int t, const char *path, int flags), (f, from, t, path, flags), t, path, 1)
CHANGE(int, unlink, (const char *path), (path), AT_FDCWD, path, 0)
CHANGE(int, unlinkat, (int folder, const char *path, int flags), (folder, path, flags), folder, path, 0)
CHANGE(int, rmdir, (const char *path), (path), AT_FDCWD, path, 0)
