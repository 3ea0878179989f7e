variable "project" {
  description = "Id of the Google Cloud project that holds the bucket and the service accounts. Best is one of its own."
  type        = string

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,28}[a-z0-9]$", var.project))
    error_message = "A project's id has 6 to 30 lower-case letters, digits and hyphens, begins with a letter and does not end with a hyphen."
  }
}

variable "bucket" {
  description = "Name of the bucket; it is unique in all of Google Cloud."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9_-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "Take 3 to 63 lower-case letters, digits, hyphens and underscores; the first and the last one a letter or digit."
  }
}

variable "location" {
  description = "Where the bucket is: a region (`europe-west4`), a dual-region (`EUR4`) or a multi-region (`EU`). It cannot be changed later. Elsewhere than the cluster means paying for what leaves, too."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z]+[A-Za-z0-9-]*$", var.location))
    error_message = "A location is letters, digits and hyphens, as in `europe-west4`."
  }
}

variable "prefix" {
  description = "Folder of the repository in the bucket, without slashes at its ends. Empty: the bucket is the repository, which is best, as nobody else is in it then."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^([A-Za-z0-9._-]+(/[A-Za-z0-9._-]+)*)?$", var.prefix))
    error_message = "Take letters, digits, dots, hyphens and underscores, in segments with one slash between them, or nothing."
  }
}

variable "storage_class" {
  description = "Class of originals. The program itself sets it on each original as it is stored (IMMICH_BACKUP_STORAGE_CLASS, see the output `environment`); all else stays in STANDARD."
  type        = string
  default     = "ARCHIVE"

  validation {
    condition     = contains(["STANDARD", "NEARLINE", "COLDLINE", "ARCHIVE"], var.storage_class)
    error_message = "Take STANDARD, NEARLINE, COLDLINE or ARCHIVE."
  }
}

variable "move_originals_after_days" {
  description = "Also moves originals that lie in STANDARD to `storage_class` after so many days, each for the price of a write in that class. Only for a bucket whose originals were stored without a class; null: no such rule."
  type        = number
  default     = null

  validation {
    condition     = var.move_originals_after_days == null || (try(var.move_originals_after_days >= 1, false) && var.storage_class != "STANDARD")
    error_message = "Take 1 or more days, and a storage_class other than STANDARD."
  }
}

variable "retention_days" {
  description = "No object can be removed or replaced before it is so old, by anybody. 0: no retention policy. `prune` fails on dumps that are younger, so keep them at least as long (--keep-within)."
  type        = number
  default     = 0

  validation {
    condition     = var.retention_days >= 0 && var.retention_days <= 36500 && floor(var.retention_days) == var.retention_days
    error_message = "Take whole days from 0 to 36500."
  }
}

variable "retention_locked" {
  description = "Locks the retention policy for ever: it can then be made longer, never shorter, and the bucket stays until its last object is old enough. There is no way back."
  type        = bool
  default     = false

  validation {
    condition     = !var.retention_locked || var.retention_days > 0
    error_message = "There is nothing to lock: set retention_days."
  }
}

variable "soft_delete_days" {
  description = "What is removed can be brought back for so many days, and is paid for that long. 0 turns it off."
  type        = number
  default     = 30

  validation {
    condition     = var.soft_delete_days == 0 || (var.soft_delete_days >= 7 && var.soft_delete_days <= 90)
    error_message = "Google takes 7 to 90 days, or 0."
  }
}

variable "verify_sample" {
  description = "For the output `backup_config`: how much each week's verification reads back, as a number of objects, a share or a part (`200`, `5%`, `1/52`); the next ones each time. Reading costs in ARCHIVE: `1/52` reads all once a year."
  type        = string
  default     = "200"

  validation {
    condition     = can(regex("^[1-9][0-9]*(%|/[1-9][0-9]*)?$", var.verify_sample))
    error_message = "Take a number, a share as in 5%, or a part as in 1/52."
  }
}

variable "prune_derived" {
  description = "Whether the pruner may remove thumbnails and transcoded videos as well (`prune --derived`)."
  type        = bool
  default     = true
}

variable "service_account_prefix" {
  description = "The service accounts are called so, and so with `-prune` behind it. A second repository in the same project takes another."
  type        = string
  default     = "immich-backup"

  validation {
    condition     = can(regex("^[a-z][a-z0-9-]{4,22}[a-z0-9]$", var.service_account_prefix))
    error_message = "Take 6 to 24 lower-case letters, digits and hyphens, beginning with a letter."
  }
}

variable "workload_identity" {
  description = "Whether the pods of a GKE cluster of this project act as the service accounts, without a key (workload identity federation for GKE). Elsewhere, make keys: see the output `keys`."
  type        = bool
  default     = true
}

variable "namespace" {
  description = "Kubernetes namespace of the service accounts `immich-backup` and `immich-backup-prune`."
  type        = string
  default     = "immich"

  validation {
    condition     = can(regex("^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$", var.namespace))
    error_message = "A namespace has up to 63 lower-case letters, digits and hyphens."
  }
}

variable "labels" {
  description = "Labels of the bucket."
  type        = map(string)
  default     = { app = "immich-backup" }
}
