/* A stand-in for AMD's libamd_smi.so: every call answers from a state file, which may be swapped by rename at any time.
 *
 * The file is written by agents/stub/state.py: "TTSTUB1\n", a count, then records: the call's name, the GPU (or -1 for
 * any), two keys, the status to answer, a delay in ms (0xFFFFFFFF: until the file says otherwise), a count for calls that
 * list, and the bytes to copy out. A call without a record answers NOT_SUPPORTED. @EMPTY@ is replaced by the symbols
 * that the installed binding wants and no body here serves.
 */
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define NOT_SUPPORTED 2
#define MORE_DATA 39
#define FOR_EVER 0xFFFFFFFFu
#define NAME_BYTES 64

struct record {
  char name[NAME_BYTES];
  int32_t gpu, status;
  uint64_t key, key2;
  uint32_t delay_ms, count, length, padding;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char *state;
static long size;
static struct stat seen;

const char *trimtab_stub_state(void) {
  const char *path = getenv("TRIMTAB_STUB_STATE");
  return path ? path : "";
}

/* Reads the file again if another one stands there. The lock is held. */
static void refresh(void) {
  struct stat now;
  const char *path = trimtab_stub_state();
  if (stat(path, &now)) return;
  if (state && now.st_ino == seen.st_ino && now.st_mtim.tv_sec == seen.st_mtim.tv_sec &&
      now.st_mtim.tv_nsec == seen.st_mtim.tv_nsec)
    return;
  FILE *file = fopen(path, "rb");
  if (!file) return;
  char *body = malloc(now.st_size);
  if (body && fread(body, 1, now.st_size, file) == (size_t)now.st_size && !memcmp(body, "TTSTUB1\n", 8)) {
    free(state);
    state = body, size = now.st_size, seen = now;
  } else {
    free(body);
  }
  fclose(file);
}

static struct record *find(const char *name, int32_t gpu, uint64_t key, uint64_t key2) {
  refresh();
  if (!state) return NULL;
  uint32_t records = *(uint32_t *)(state + 8);
  char *at = state + 16;
  for (uint32_t i = 0; i < records && at + sizeof(struct record) <= state + size; i++) {
    struct record *one = (struct record *)at;
    if ((one->gpu == gpu || one->gpu < 0) && one->key == key && one->key2 == key2 && !strcmp(one->name, name)) return one;
    at += sizeof(struct record) + ((one->length + 7) & ~7u);
  }
  return NULL;
}

static void wait_ms(long ms) {
  struct timespec pause = {ms / 1000, (ms % 1000) * 1000000L};
  nanosleep(&pause, NULL);
}

/* The record of a call, its delay over; the lock is held when it returns one. */
static struct record *reply(const char *name, void *handle, uint64_t key, uint64_t key2) {
  int32_t gpu = (int32_t)(intptr_t)handle - 1;
  int waited = 0;
  for (;;) {
    pthread_mutex_lock(&lock);
    struct record *one = find(name, gpu, key & 0xFFFFFFFFu, key2 & 0xFFFFFFFFu);
    uint32_t delay = one ? one->delay_ms : 0;
    if (!delay || (waited && delay != FOR_EVER)) return one;
    pthread_mutex_unlock(&lock);
    wait_ms(delay == FOR_EVER ? 20 : delay);
    waited = 1;
  }
}

static int answer(struct record *one, void *out, size_t most) {
  int status = one ? one->status : NOT_SUPPORTED;
  if (one && out && one->length) memcpy(out, (char *)(one + 1), one->length < most ? one->length : most);
  pthread_mutex_unlock(&lock);
  return status;
}

#define FILLS(name) int name(void *h, void *out) { return answer(reply(#name, h, 0, 0), out, -1); }
#define KEYED(name) int name(void *h, uint64_t k, void *out) { return answer(reply(#name, h, k, 0), out, -1); }
#define TWICE(name) int name(void *h, uint64_t k, uint64_t l, void *out) { return answer(reply(#name, h, k, l), out, -1); }
#define TEXT(name) int name(void *h, char *out, uint32_t most) { return answer(reply(#name, h, 0, 0), out, most); }
#define LISTS(name)                                      \
  int name(void *h, uint32_t *count, void *out) {        \
    struct record *one = reply(#name, h, 0, 0);          \
    if (one) *count = one->count;                        \
    return answer(one, out, -1);                         \
  }

int amdsmi_init(uint64_t flags) { (void)flags; return answer(reply("amdsmi_init", 0, 0, 0), NULL, 0); }
int amdsmi_shut_down(void) { return 0; }
void amdsmi_free_name_value_pairs(void *p) { (void)p; }
int amdsmi_get_lib_version(void *out) { return answer(reply("amdsmi_get_lib_version", 0, 0, 0), out, -1); }

int amdsmi_get_socket_handles(uint32_t *count, void **out) {
  struct record *one = reply("amdsmi_get_socket_handles", 0, 0, 0);
  uint32_t there = one ? one->count : 0;
  for (uint32_t i = 0; out && i < there && i < *count; i++) out[i] = (void *)(intptr_t)(1001 + i);
  *count = there;
  return answer(one, NULL, 0);
}

int amdsmi_get_processor_handles(void *socket, uint32_t *count, void **out) {
  if (out && *count) out[0] = (void *)((intptr_t)socket - 1000);
  *count = 1;
  return 0;
}

FILLS(amdsmi_get_gpu_metrics_info)
FILLS(amdsmi_get_gpu_device_bdf)
FILLS(amdsmi_get_gpu_bdf_id)
FILLS(amdsmi_get_gpu_asic_info)
FILLS(amdsmi_get_gpu_board_info)
FILLS(amdsmi_get_gpu_driver_info)
FILLS(amdsmi_get_gpu_vbios_info)
FILLS(amdsmi_get_gpu_kfd_info)
FILLS(amdsmi_get_fw_info)
FILLS(amdsmi_get_gpu_bad_page_threshold)
KEYED(amdsmi_get_gpu_ecc_count)
KEYED(amdsmi_get_gpu_memory_usage)
KEYED(amdsmi_get_gpu_memory_total)
KEYED(amdsmi_get_power_cap_info)
TWICE(amdsmi_get_temp_metric)
TEXT(amdsmi_get_gpu_compute_partition)
TEXT(amdsmi_get_gpu_memory_partition)
LISTS(amdsmi_get_gpu_bad_page_info)

int amdsmi_get_gpu_device_uuid(void *h, uint32_t *length, char *out) {
  return answer(reply("amdsmi_get_gpu_device_uuid", h, 0, 0), out, *length);
}

int amdsmi_get_processor_type(void *h, uint32_t *out) {
  (void)h;
  *out = 1; /* an AMD GPU */
  return 0;
}

/* The payload is records, each a length (u32) and its bytes; the cursor is the number of the next one. */
int amdsmi_get_gpu_cper_entries(void *h, uint32_t mask, char *buffer, uint64_t *room, void **headers, uint64_t *entries,
                                uint64_t *cursor) {
  (void)mask, (void)headers;
  struct record *one = reply("amdsmi_get_gpu_cper_entries", h, 0, 0);
  uint64_t used = 0, given = 0, number = 0;
  int more = 0;
  if (one && !one->status) {
    char *at = (char *)(one + 1), *end = at + one->length;
    for (; at + 4 <= end; number++) {
      uint32_t length = *(uint32_t *)at;
      if (number >= *cursor) {
        if (used + length > *room || given == *entries) { more = 1; break; }
        memcpy(buffer + used, at + 4, length);
        used += length, given++;
      }
      at += 4 + length;
    }
    *cursor = *cursor > number ? *cursor : number;
  }
  *room = used, *entries = given;
  int status = answer(one, NULL, 0);
  return status ? status : more ? MORE_DATA : 0;
}

/* A record's identifiers are its last bytes: a count (u32), before it as many numbers (u64). */
int amdsmi_get_afids_from_cper(char *record, uint32_t length, uint64_t *out, uint32_t *count) {
  uint32_t there;
  if (length < 4) return 1;
  memcpy(&there, record + length - 4, 4);
  if (there > *count || 4 + 8 * there > length) return 1;
  memcpy(out, record + length - 4 - 8 * there, 8 * there);
  *count = there;
  return 0;
}

@EMPTY@
