/* A small pool of threads that take chunks of one job; they sleep when there is none.
 *
 * Within a decoding step the next job comes in microseconds, so they look for it for some tens of
 * microseconds first, and offer their core to others while they look.
 * Whoever is free takes the next chunk, so a thread that the system holds back delays one chunk and
 * not the whole job; the caller works too, and waits only for chunks that were begun. */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>

#include "trilith.h"

static struct {
    pthread_mutex_t lock;
    pthread_cond_t wake, done;
    int num_workers, num_asleep;
    atomic_int places, active;
    chunk_task *task;
    void *context;
    int64_t count;
    atomic_int_fast64_t next;
} pool = {.lock = PTHREAD_MUTEX_INITIALIZER,
          .wake = PTHREAD_COND_INITIALIZER,
          .done = PTHREAD_COND_INITIALIZER};

/* Held by the caller whose job it is; another caller meanwhile works alone. */
static pthread_mutex_t owner = PTHREAD_MUTEX_INITIALIZER;
static pthread_once_t once = PTHREAD_ONCE_INIT;

enum { LOOKS = 32, PAUSES_PER_LOOK = 32 };

/* Wait until *number is zero (or not zero), but not for long. */
static void look_for(atomic_int *number, int nonzero) {
    for (int look = 0; look < LOOKS; look++) {
        for (int i = 0; i < PAUSES_PER_LOOK; i++) {
            if ((atomic_load_explicit(number, memory_order_relaxed) != 0) == nonzero) return;
#ifdef __x86_64__
            __builtin_ia32_pause();
#endif
        }
        sched_yield();
    }
}

static void take_chunks(int worker) {
    for (;;) {
        int64_t chunk = atomic_fetch_add(&pool.next, 1);
        if (chunk >= pool.count) return;
        pool.task(pool.context, chunk, worker);
    }
}

static void *work(void *unused) {
    (void)unused;
    pthread_mutex_lock(&pool.lock);
    for (;;) {
        pool.num_asleep++;
        while (pool.places == 0) pthread_cond_wait(&pool.wake, &pool.lock);
        pool.num_asleep--;
        int worker = pool.places--;
        pool.active++;
        pthread_mutex_unlock(&pool.lock);
        take_chunks(worker);
        pthread_mutex_lock(&pool.lock);
        if (--pool.active == 0) pthread_cond_signal(&pool.done);
        pthread_mutex_unlock(&pool.lock);
        look_for(&pool.places, 1);
        pthread_mutex_lock(&pool.lock);
    }
    return NULL;
}

/* A forked child has none of the threads. */
static void forget_threads(void) {
    pthread_mutex_init(&pool.lock, NULL);
    pthread_cond_init(&pool.wake, NULL);
    pthread_cond_init(&pool.done, NULL);
    pthread_mutex_init(&owner, NULL);
    pool.num_workers = pool.num_asleep = 0;
    pool.places = pool.active = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, forget_threads); }

static int start_workers(int wanted) {
    while (pool.num_workers < wanted) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, work, NULL)) break;
        pthread_detach(thread);
        pool.num_workers++;
    }
    return pool.num_workers < wanted ? pool.num_workers : wanted;
}

void run_chunks(int threads, int64_t count, chunk_task *task, void *context) {
    if (threads > count) threads = (int)count;
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    if (threads < 2 || pthread_mutex_trylock(&owner)) {
        for (int64_t chunk = 0; chunk < count; chunk++) task(context, chunk, 0);
        return;
    }
    pthread_once(&once, watch_forks);
    pthread_mutex_lock(&pool.lock);
    pool.task = task;
    pool.context = context;
    pool.count = count;
    atomic_store(&pool.next, 0);
    pool.places = start_workers(threads - 1);
    if (pool.num_asleep) pthread_cond_broadcast(&pool.wake);
    pthread_mutex_unlock(&pool.lock);
    take_chunks(0);
    pthread_mutex_lock(&pool.lock);
    pool.places = 0;
    pthread_mutex_unlock(&pool.lock);
    look_for(&pool.active, 0);
    pthread_mutex_lock(&pool.lock);
    while (pool.active) pthread_cond_wait(&pool.done, &pool.lock);
    pthread_mutex_unlock(&pool.lock);
    pthread_mutex_unlock(&owner);
}
