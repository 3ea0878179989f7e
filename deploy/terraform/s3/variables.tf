variable "region" {
  description = "Where the bucket is. Elsewhere than the cluster means paying for what leaves, too."
  type        = string

  validation {
    condition     = can(regex("^[a-z]{2}(-[a-z]+)+-[0-9]$", var.region))
    error_message = "A region is written as in `eu-central-1`."
  }
}

variable "bucket" {
  description = "Name of the bucket; it is unique in all of AWS."
  type        = string

  validation {
    condition     = can(regex("^[a-z0-9][a-z0-9-]{1,61}[a-z0-9]$", var.bucket))
    error_message = "Take 3 to 63 lower-case letters, digits and hyphens; the first and the last one a letter or digit."
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
  default     = "GLACIER_IR"

  validation {
    condition     = contains(["STANDARD", "STANDARD_IA", "ONEZONE_IA", "INTELLIGENT_TIERING", "GLACIER_IR"], var.storage_class)
    error_message = "Take STANDARD, STANDARD_IA, ONEZONE_IA, INTELLIGENT_TIERING or GLACIER_IR: what lies in GLACIER or DEEP_ARCHIVE cannot be read at once, and the program refuses them."
  }
}

variable "move_originals_after_days" {
  description = "Also moves originals that lie in STANDARD to `storage_class` after so many days, each for the price of a write in that class. Only for a bucket whose originals were stored without a class; null: no such rule."
  type        = number
  default     = null

  validation {
    condition     = var.move_originals_after_days == null || (try(var.move_originals_after_days >= 30, false) && var.storage_class != "STANDARD")
    error_message = "Take 30 or more days, and a storage_class other than STANDARD."
  }
}

variable "object_lock_days" {
  description = "No version of an object can be removed before it is so old. 0: no default retention. Object Lock itself is always on, so that it can be set later."
  type        = number
  default     = 0

  validation {
    condition     = var.object_lock_days >= 0 && var.object_lock_days <= 36500 && floor(var.object_lock_days) == var.object_lock_days
    error_message = "Take whole days from 0 to 36500."
  }
}

variable "object_lock_mode" {
  description = "GOVERNANCE: who has s3:BypassGovernanceRetention may remove all the same. COMPLIANCE: nobody may, the account's root included, and there is no way back."
  type        = string
  default     = "GOVERNANCE"

  validation {
    condition     = contains(["GOVERNANCE", "COMPLIANCE"], var.object_lock_mode)
    error_message = "Take GOVERNANCE or COMPLIANCE."
  }
}

variable "removed_kept_days" {
  description = "What was removed stays so many days as a version that an administrator can bring back, and is paid for that long. Versions that Object Lock holds stay longer."
  type        = number
  default     = 30

  validation {
    condition     = var.removed_kept_days >= 1 && floor(var.removed_kept_days) == var.removed_kept_days
    error_message = "Take 1 or more whole days."
  }
}

variable "verify_sample" {
  description = "For the output `backup_config`: how much each week's verification reads back, as a number of objects, a share or a part (`200`, `5%`, `1/52`); the next ones each time. `1/52` reads all once a year."
  type        = string
  default     = "1/52"

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

variable "kms_key_arn" {
  description = "A key of your own for the bucket (SSE-KMS); writer and pruner may use it. Empty: Amazon's (SSE-S3), which costs nothing. Its own policy has to let IAM policies of the account count, as KMS' default policy does."
  type        = string
  default     = ""

  validation {
    condition     = can(regex("^(arn:aws[a-z-]*:kms:[a-z0-9-]+:[0-9]{12}:key/[A-Za-z0-9-]+)?$", var.kms_key_arn))
    error_message = "Take the ARN of a key, not of an alias, or nothing."
  }
}

variable "identity" {
  description = "How pods act as writer and pruner: `irsa` (IAM roles for service accounts), `pod-identity` (EKS Pod Identity), or `user` (IAM users with access keys, for clusters elsewhere)."
  type        = string
  default     = "irsa"

  validation {
    condition     = contains(["irsa", "pod-identity", "user"], var.identity)
    error_message = "Take irsa, pod-identity or user."
  }
}

variable "oidc_provider_arn" {
  description = "With `irsa`: ARN of the cluster's OpenID Connect provider in IAM."
  type        = string
  default     = ""

  validation {
    condition     = var.identity == "irsa" ? can(regex("^arn:aws[a-z-]*:iam::[0-9]{12}:oidc-provider/.+$", var.oidc_provider_arn)) : var.oidc_provider_arn == ""
    error_message = "It goes with identity = \"irsa\", and is written arn:aws:iam::ACCOUNT:oidc-provider/HOST/PATH."
  }
}

variable "cluster_name" {
  description = "With `pod-identity`: name of the EKS cluster, which has to have the add-on eks-pod-identity-agent."
  type        = string
  default     = ""

  validation {
    condition     = (var.cluster_name != "") == (var.identity == "pod-identity")
    error_message = "It goes with identity = \"pod-identity\"."
  }
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

variable "name_prefix" {
  description = "Roles or users and policies are called so, and so with `-prune` behind it. A second repository in the same account takes another."
  type        = string
  default     = "immich-backup"

  validation {
    condition     = can(regex("^[A-Za-z0-9_-]{1,50}$", var.name_prefix))
    error_message = "Take up to 50 letters, digits, hyphens and underscores."
  }
}

variable "tags" {
  description = "Tags of all that is made here."
  type        = map(string)
  default     = { app = "immich-backup" }
}
